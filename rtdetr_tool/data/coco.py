"""Read and validate COCO detection files (https://cocodataset.org/#format-data).

Harmless problems are repaired and counted in `Repairs`; anything that makes labels ambiguous is a `DataError`.
"""

from __future__ import annotations

import glob
import math
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from rtdetr_tool.catalog import BOXES, KEYPOINTS, MASKS
from rtdetr_tool.class_names import unique_names
from rtdetr_tool.data.coco_json import json_kind, load_json, without_garbage_collection
from rtdetr_tool.data.coco_keypoints import PoseReader
from rtdetr_tool.data.decoding import image_size
from rtdetr_tool.data.joining import add_categories
from rtdetr_tool.data.source import LARGEST_SIDE, AnnotatedImage, Source, fitted_box
from rtdetr_tool.data.units import XYWH, BoxUnits
from rtdetr_tool.errors import DataError, MissingData
from rtdetr_tool.messages import encodable, first_of, shortened
from rtdetr_tool.ops.masks import UNKNOWN, counts_of

_LARGEST_ID = 2**63 - 1  # ids are kept as 64-bit integers


def read_source(image_dir: str, json_file: str, kind: str = BOXES) -> Source:
    """Read `json_file` with images in `image_dir`.

    `json_file` may also be a glob pattern, or a folder with JSON files; the files are joined, in order of their names.
    Masks and keypoints are read only on request (`kind`), because they are most of a file.
    """
    if not os.path.isdir(image_dir):
        raise MissingData(f"The image directory {image_dir!r} does not exist (image_dir of json_file {json_file!r}).")
    paths = _annotation_files(json_file)
    source = Source(json_file)
    for path in paths:
        _Reader(path, image_dir, source, kind).read()
    return source


def _annotation_files(json_file: str) -> list[str]:
    if os.path.isdir(json_file):
        paths = sorted(glob.glob(os.path.join(glob.escape(json_file), "*.json")))
        if not paths:
            raise DataError(f"The folder {json_file!r} (json_file) has no annotation file; expected *.json in it.")
        return paths
    if os.path.exists(json_file) or not glob.has_magic(json_file):
        return [json_file]
    paths = sorted(glob.glob(json_file))
    if not paths:
        raise DataError(f"No annotation file matches {json_file!r}.")
    return paths


class _Reader:
    """Validates one file and adds its content to a source."""

    def __init__(self, path: str, image_dir: str, source: Source, kind: str) -> None:
        self.path, self.image_dir, self.source, self.kind = path, image_dir, source, kind
        self.repairs = source.repairs
        self.units = BoxUnits(XYWH)
        self.poses = PoseReader(path, source)
        self.joined: dict[int, int] = {}  # category id of this file -> of the source, which may have several files

    def read(self) -> None:
        content = load_json(self.path, self.kind)
        for key in ("images", "annotations", "categories"):
            if key not in content:
                raise DataError(
                    f"Annotation file {self.path} has no {key!r}; expected images, annotations and categories."
                )
            if not isinstance(content[key], list):
                raise DataError(
                    f"{key!r} in annotation file {self.path} is {json_kind(content[key])}; expected a list."
                )
        with without_garbage_collection():
            self._categories(content.pop("categories"))
            self._images(content.pop("images"))
            self._annotations(content.pop("annotations"))
        if self.kind == KEYPOINTS:
            self.poses.complete()
        self.units.check(self.path, self.repairs)

    def _categories(self, entries: list[Any]) -> None:
        known: dict[int, str] = {}
        supercategories: dict[int, str] = {}
        for number, entry in enumerate(entries):
            where = f"categories[{number}]"
            category_id = self._id(self._object(entry, where), "id", where)
            name = encodable(entry.get("name"))
            if category_id in known:
                if known[category_id] != name:
                    raise DataError(
                        f"Category id {category_id} has two names in {self.path}: {known[category_id]!r} and {name!r}. "
                        "Use each id once."
                    )
                self.repairs.add("category_repeated", f"id {category_id}")
            known[category_id] = name
            supercategories[category_id] = encodable(entry.get("supercategory"))
        names = unique_names(known, self.repairs.add)
        add_categories(self.source.categories, names, self.repairs)
        id_of = {name: category_id for category_id, name in self.source.categories.items()}
        self.joined = {category_id: id_of[name] for category_id, name in names.items()}
        self.source.supercategories.update({self.joined[id_]: name for id_, name in supercategories.items()})
        if self.kind == KEYPOINTS:
            self.poses.read_categories(entries, self.joined)

    def _images(self, entries: list[Any]) -> None:
        known = self.source.images
        for number, entry in enumerate(entries):
            where = f"images[{number}]"
            image_id = self._id(self._object(entry, where), "id", where)
            path = self._image_path(entry.get("file_name"), where)
            if image_id in known:
                if known[image_id].path != path:
                    raise DataError(
                        f"Image id {image_id} has two files in {self.path}: {known[image_id].path} and {path}, so its "
                        "annotations are ambiguous. Use each id once."
                    )
                self.repairs.add("image_repeated", f"id {image_id}")
                continue
            known[image_id] = AnnotatedImage(path, *self._size(entry, path))

    def _size(self, entry: Mapping[str, Any], path: str) -> tuple[int, int]:
        """Width and height from the annotations, else from the file; 0, 0 if unreadable (reported later)."""
        width, height = (_number(entry.get(key)) for key in ("width", "height"))
        if 1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE:
            return int(width), int(height)
        self.repairs.add("image_without_size", os.path.basename(path))
        try:
            return image_size(path)
        except DataError:
            return 0, 0

    def _image_path(self, name: Any, where: str) -> str:
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise DataError(
                f"{where} in {self.path} has no file_name; expected a path relative to the image directory."
            )
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{where} in {self.path} has a file_name that is not valid text: {name!r}.") from None
        if name.startswith("h5://"):
            raise DataError(
                f"{where} in {self.path} is a frame of an HDF5 file, {name!r}; expected an image file, because frames "
                "of HDF5 files are not supported. Extract them to image files and change file_name to their names."
            )
        plain = PurePosixPath(name.replace("\\", "/") if os.sep == "/" else name)
        outside = plain.is_absolute() or ".." in plain.parts or re.match(r"[A-Za-z]:|[^/]+:/", name)
        if outside or not plain.parts:
            raise DataError(
                f"{where} in {self.path} has the file_name {name!r}; expected a path relative to the image directory "
                "and inside it."
            )
        return os.path.join(self.image_dir, *plain.parts)

    def _annotations(self, entries: list[Any]) -> None:
        images, categories = self.source.images, self.source.categories
        seen: set[int | str] = set()
        unknown: dict[int, int] = defaultdict(int)
        for number, entry in enumerate(entries):
            entries[number] = None  # free its memory for the rows
            where = f"annotations[{number}]"
            image_id = self._id(self._object(entry, where), "image_id", where)
            category_id = self._id(entry, "category_id", where)
            self._note_id(entry, number, seen)
            joined = self.joined.get(category_id, category_id)
            if joined not in categories:
                unknown[category_id] += 1
                continue
            image = images.get(image_id)
            if image is None:
                self.repairs.add("annotation_of_unknown_image", f"{where} of image {image_id}")
                continue
            box = self._box(entry.get("bbox"), image, where)
            if box is not None:
                image.rows.append((*box, joined, self._crowd(entry, where), self._area(entry, box, where)))
                if self.kind == MASKS:
                    image.masks.append(self._mask(entry.get("segmentation"), image, where))
                elif self.kind == KEYPOINTS:
                    image.keypoints.append(self.poses.points(entry.get("keypoints"), joined, image, where))
        if unknown:
            raise DataError(
                f"Annotations in {self.path} have category ids that are not in 'categories': "
                f"{first_of(f'{i} ({n} annotations)' for i, n in sorted(unknown.items()))}; expected one of "
                f"{first_of(sorted(categories), 20)}."
            )

    def _note_id(self, entry: Mapping[str, Any], number: int, seen: set[int | str]) -> None:
        annotation_id = entry.get("id")
        if isinstance(annotation_id, (int, str)):
            if annotation_id in seen:
                self.repairs.add("annotation_id_repeated", f"id {annotation_id}")
            seen.add(annotation_id)

    def _box(self, bbox: Any, image: AnnotatedImage, where: str) -> tuple[float, float, float, float] | None:
        """COCO's (x, y, width, height) as xyxy, clipped to the image; None if nothing is left."""
        if not isinstance(bbox, list) or len(bbox) != 4 or any(type(value) not in (int, float) for value in bbox):
            self.repairs.add("box_malformed", where)
            return None
        x, y, width, height = numbers = [_number(value) for value in bbox]
        if not all(map(math.isfinite, numbers)):
            self.repairs.add("box_not_finite", where)
            return None
        self.units.add(numbers, image.width, image.height)
        return fitted_box((x, y, x + width, y + height), image, self.repairs, where)

    def _area(self, entry: Mapping[str, Any], box: tuple[float, ...], where: str) -> float:
        """COCO's area, limited to the area of the box if it was clipped."""
        most = (box[2] - box[0]) * (box[3] - box[1])
        area = _number(entry.get("area"))
        if math.isfinite(area) and area > 0:
            x, y, width, height = map(_number, entry["bbox"])
            clipped = (x, y, x + width, y + height) != tuple(box)
            return min(area, most) if clipped else area
        self.repairs.add("area_computed", where)
        return most

    def _crowd(self, entry: Mapping[str, Any], where: str) -> bool:
        """COCO's iscrowd, 0 or 1; an annotation without it is a single object."""
        value = entry.get("iscrowd")
        if value in (0, 1):  # False and True too
            return bool(value)
        self.repairs.add("iscrowd_assumed", where)
        return False

    def _mask(self, segmentation: Any, image: AnnotatedImage, where: str) -> bytes:
        counts = counts_of(segmentation, image.height, image.width) if segmentation else UNKNOWN
        if not counts:
            self.repairs.add("mask_malformed" if segmentation else "mask_missing", where)
        return counts or UNKNOWN

    # Values

    def _object(self, entry: Any, where: str) -> Mapping[str, Any]:
        if not isinstance(entry, dict):
            raise DataError(f"{where} in {self.path} is {json_kind(entry)}; expected an object.")
        return entry

    def _id(self, entry: Mapping[str, Any], key: str, where: str) -> int:
        value = entry.get(key)
        number: int | None = None
        if isinstance(value, float) and value.is_integer():
            number = int(value)
        elif isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,19}\s*", value):
            number = int(value)
            self.repairs.add("id_as_text", f"{where}.{key}")
        elif isinstance(value, int) and not isinstance(value, bool):
            number = value
        if number is not None and abs(number) <= _LARGEST_ID:
            return number
        problem = "missing" if key not in entry else shortened(value)
        raise DataError(f"{where}.{key} in {self.path} is {problem}; expected a 64-bit integer.")


def _number(value: Any) -> float:
    """A JSON number as a float, infinity if it overflows; NaN for anything else."""
    if type(value) not in (int, float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf
