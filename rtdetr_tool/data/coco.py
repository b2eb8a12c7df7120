"""Reading and checking COCO detection files (https://cocodataset.org/#format-data).

What is only untidy is mended and counted in `Repairs`; what would make the labels ambiguous is a `DataError`.
"""

from __future__ import annotations

import glob
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from rtdetr_tool.data.classes import ClassMap
from rtdetr_tool.data.preprocess import image_size
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.data.repairs import Repairs
from rtdetr_tool.errors import DataError

# Annotation tools round; a box may stick out this far (pixels) without being touched, as in COCO's own files.
OVERHANG = 0.5


@dataclass
class _Image:
    path: str
    width: int
    height: int
    rows: list[tuple] = field(default_factory=list)  # (x1, y1, x2, y2, category id, crowd, area)


@dataclass
class CocoSource:
    """A checked annotation file with its image folder: images by id, in the order of the file."""

    name: str
    images: dict[int, _Image]
    categories: dict[int, str]
    repairs: Repairs

    def records(self, class_map: ClassMap) -> list[ImageRecord]:
        index_of = {category_id: class_map.index_of(category_id) for category_id in self.categories}
        return [_record(image_id, image, index_of) for image_id, image in self.images.items()]


def read_source(image_dir: str, json_file: str) -> CocoSource:
    """Read `json_file` (a path, or a pattern with wildcards: its files together) with images in `image_dir`."""
    if not os.path.isdir(image_dir):
        raise DataError(f"The image directory {image_dir!r} does not exist (image_dir beside json_file {json_file!r}).")
    paths = sorted(glob.glob(json_file)) if glob.has_magic(json_file) and not os.path.exists(json_file) else [json_file]
    if not paths:
        raise DataError(f"No annotation file matches {json_file!r}.")
    source = CocoSource(json_file, {}, {}, Repairs())
    for path in paths:
        _Reader(path, image_dir, source).read()
    return source


def drop_missing_images(source: CocoSource, policy: str) -> None:
    """Look for the files of all images, one listing per directory.

    `policy` is `skip` (leave them out, count them in the repairs) or `error`. That not a single file exists is always
    an error: the folder is the wrong one.
    """
    missing = _missing(image.path for image in source.images.values())
    if not missing:
        return
    shown = ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
    total = len(source.images)
    if policy == "error" or len(missing) == len({image.path for image in source.images.values()}):
        raise DataError(f"{len(missing)} of {total} image files of {source.name} do not exist: {shown}")
    for image_id, image in list(source.images.items()):
        if image.path in missing:
            source.repairs.add("image_missing", image.path)
            del source.images[image_id]


def _missing(paths: Iterable[str]) -> set[str]:
    folders: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        folder, name = os.path.split(path)
        folders[folder].add(name)
    missing = set()
    for folder, names in folders.items():
        try:
            present = set(os.listdir(folder))
        except OSError:
            present = set()
        missing |= {os.path.join(folder, name) for name in names - present}
    return missing


def load_json(path: str) -> dict[str, Any]:
    """The object in a JSON file (UTF-8, with or without a byte order mark); DataError for everything else."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except FileNotFoundError as error:
        raise DataError(f"Annotation file not found: {path}") from error
    except OSError as error:
        raise DataError(f"Cannot read annotation file {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"Annotation file {path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    except json.JSONDecodeError as error:
        empty = error.pos == 0 and os.path.getsize(path) <= 3
        what = "is empty" if empty else f"is not valid JSON or is cut off: {error}"
        raise DataError(f"Annotation file {path} {what}.") from error
    except RecursionError as error:
        raise DataError(f"Annotation file {path} is nested too deeply to be a COCO file.") from error
    if not isinstance(content, dict):
        raise DataError(
            f"Annotation file {path} holds {_kind(content)} at the top, not an object with images, annotations and "
            "categories" + (" (it looks like a file of detection results)." if isinstance(content, list) else ".")
        )
    return content


class _Reader:
    """Checks one file and adds its content to a source."""

    def __init__(self, path: str, image_dir: str, source: CocoSource) -> None:
        self.path, self.image_dir, self.source = path, image_dir, source
        self.repairs = source.repairs

    def read(self) -> None:
        content = load_json(self.path)
        for key in ("images", "annotations", "categories"):
            if key not in content:
                raise DataError(f"Annotation file {self.path} has no {key!r}; its keys are {sorted(content)}.")
            if not isinstance(content[key], list):
                raise DataError(f"{key!r} in annotation file {self.path} is {_kind(content[key])}, not a list.")
        self._categories(content["categories"])
        self._images(content["images"])
        self._annotations(content["annotations"])

    def _categories(self, entries: list) -> None:
        known = self.source.categories
        for number, entry in enumerate(entries):
            where = f"categories[{number}]"
            category_id = self._id(self._object(entry, where), "id", where)
            name = str(entry.get("name", category_id)).strip()
            if category_id in known:
                if known[category_id] != name:
                    raise DataError(
                        f"Category id {category_id} has two names in {self.path}: {known[category_id]!r} and {name!r}."
                    )
                self.repairs.add("category_repeated", f"id {category_id}")
            known[category_id] = name

    def _images(self, entries: list) -> None:
        known = self.source.images
        for number, entry in enumerate(entries):
            where = f"images[{number}]"
            image_id = self._id(self._object(entry, where), "id", where)
            path = self._image_path(entry.get("file_name"), where)
            if image_id in known:
                if known[image_id].path != path:
                    raise DataError(
                        f"Image id {image_id} stands for two files in {self.path}: {known[image_id].path} and {path}; "
                        "nobody can say which one its annotations belong to."
                    )
                self.repairs.add("image_repeated", f"id {image_id}")
                continue
            known[image_id] = _Image(path, *self._size(entry, path))

    def _size(self, entry: Mapping[str, Any], path: str) -> tuple[int, int]:
        """Declared width and height, else the file's; 0, 0 where neither is known (the file will be reported)."""
        size = [entry.get("width"), entry.get("height")]
        if all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) and v >= 1 for v in size):
            return int(size[0]), int(size[1])
        self.repairs.add("image_without_size", os.path.basename(path))
        try:
            return image_size(path)
        except DataError:
            return 0, 0

    def _image_path(self, name: Any, where: str) -> str:
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise DataError(f"{where} in {self.path} has no file_name.")
        plain = PurePosixPath(name.replace("\\", "/") if os.sep == "/" else name)
        if plain.is_absolute() or ".." in plain.parts or ":" in plain.parts[0]:
            raise DataError(
                f"{where} in {self.path} names the file {name!r}; file names must be relative to the image directory "
                "and stay inside it."
            )
        return os.path.join(self.image_dir, *plain.parts)

    def _annotations(self, entries: list) -> None:
        images, categories = self.source.images, self.source.categories
        seen: set[int] = set()
        unknown: dict[int, int] = defaultdict(int)
        for number, entry in enumerate(entries):
            where = f"annotations[{number}]"
            image_id = self._id(self._object(entry, where), "image_id", where)
            category_id = self._id(entry, "category_id", where)
            self._note_id(entry, number, seen)
            if category_id not in categories:
                unknown[category_id] += 1
                continue
            image = images.get(image_id)
            if image is None:
                self.repairs.add("annotation_of_unknown_image", f"{where} of image {image_id}")
                continue
            box = self._box(entry.get("bbox"), image, where)
            if box is not None:
                crowd = bool(entry.get("iscrowd") or False)
                image.rows.append((*box, category_id, crowd, self._area(entry, box, where)))
        if unknown:
            raise DataError(
                f"Annotations in {self.path} use category ids that its 'categories' do not list: "
                + ", ".join(f"{i} ({n} annotations)" for i, n in sorted(unknown.items())[:5])
                + f". Listed are {sorted(categories)[:20]}."
            )

    def _note_id(self, entry: Mapping[str, Any], number: int, seen: set) -> None:
        annotation_id = entry.get("id")
        if isinstance(annotation_id, (int, str)):
            if annotation_id in seen:
                self.repairs.add("annotation_id_repeated", f"id {annotation_id}")
            seen.add(annotation_id)

    def _box(self, bbox: Any, image: _Image, where: str) -> tuple[float, float, float, float] | None:
        """COCO's (x, y, width, height) as xyxy, clipped to the image; None when nothing usable is left."""
        try:
            x, y, width, height = (float(value) for value in bbox)
        except (TypeError, ValueError):
            self.repairs.add("box_malformed", where)
            return None
        if not (math.isfinite(x) and math.isfinite(y) and math.isfinite(width) and math.isfinite(height)):
            self.repairs.add("box_not_finite", where)
            return None
        if width <= 0 or height <= 0:
            self.repairs.add("box_empty", where)
            return None
        right, bottom = x + width, y + height
        limit_x, limit_y = image.width or math.inf, image.height or math.inf
        if x >= limit_x or y >= limit_y or right <= 0 or bottom <= 0:
            self.repairs.add("box_outside", where)
            return None
        if min(x, y) < -OVERHANG or right > limit_x + OVERHANG or bottom > limit_y + OVERHANG:
            self.repairs.add("box_clipped", where)
            return max(x, 0.0), max(y, 0.0), min(right, limit_x), min(bottom, limit_y)
        return x, y, right, bottom

    def _area(self, entry: Mapping[str, Any], box: tuple[float, ...], where: str) -> float:
        """COCO's area; a clipped box cannot cover more than itself."""
        most = (box[2] - box[0]) * (box[3] - box[1])
        area = entry.get("area")
        if isinstance(area, (int, float)) and math.isfinite(area) and area > 0:
            x, y, width, height = (float(value) for value in entry["bbox"])
            clipped = (x, y, x + width, y + height) != tuple(box)
            return min(float(area), most) if clipped else float(area)
        self.repairs.add("area_computed", where)
        return most

    # Plain values

    def _object(self, entry: Any, where: str) -> Mapping[str, Any]:
        if not isinstance(entry, dict):
            raise DataError(f"{where} in {self.path} is {_kind(entry)}, not an object.")
        return entry

    def _id(self, entry: Mapping[str, Any], key: str, where: str) -> int:
        value = entry.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, str):
            try:
                number = int(value)
            except ValueError:
                pass
            else:
                self.repairs.add("id_as_text", f"{where}.{key}")
                return number
        missing = "is missing" if key not in entry else f"is {value!r}, not an integer"
        raise DataError(f"{where}.{key} in {self.path} {missing}.")


def _record(image_id: int, image: _Image, index_of: Mapping[int, int]) -> ImageRecord:
    if not image.rows:
        return ImageRecord(image.path, image_id, image.width, image.height)
    table = np.array([row[:4] for row in image.rows], dtype=np.float64)
    return ImageRecord(
        path=image.path,
        image_id=image_id,
        width=image.width,
        height=image.height,
        boxes=table,
        labels=np.array([index_of[row[4]] for row in image.rows], dtype=np.int64),
        iscrowd=np.array([row[5] for row in image.rows], dtype=np.bool_),
        area=np.array([row[6] for row in image.rows], dtype=np.float64),
    )


def coco_ground_truth(records: Iterable[ImageRecord], class_map: ClassMap) -> dict[str, list[dict[str, Any]]]:
    """The records as a plain COCO dict: image and category ids of the file, crowd regions included, cleaned boxes.

    Annotations are numbered from 1, whatever they were in the file: pycocotools takes an annotation with id 0 for
    unmatched.
    """
    images, annotations = [], []
    id_of = {entry.index: entry.category_id for entry in class_map.entries}
    for record in records:
        images.append({"id": record.image_id, "file_name": record.path, "width": record.width, "height": record.height})
        columns = (record.boxes.tolist(), record.labels.tolist(), record.iscrowd.tolist(), record.area.tolist())
        for (x1, y1, x2, y2), label, crowd, area in zip(*columns, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": id_of[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
    categories = [{"id": entry.category_id, "name": entry.name} for entry in class_map.entries]
    return {"images": images, "annotations": annotations, "categories": categories}


def _kind(value: Any) -> str:
    """What JSON calls a value, with its article."""
    names = {list: "a list", dict: "an object", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names[type(value)]
