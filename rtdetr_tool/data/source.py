"""The common result of all annotation readers: images with boxes, categories and repairs."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from rtdetr_tool.data.faults import names_in, retried
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.data.repairs import Repairs
from rtdetr_tool.errors import DataError
from rtdetr_tool.files import open_regular
from rtdetr_tool.messages import first_of
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.keypoints import Pose

# Annotation tools round: boxes may extend beyond the image by this much (pixels) without clipping, as in COCO's files.
OVERHANG = 0.5

LARGEST_SIDE = 10**6  # pixels; larger images are not used in practice
LARGEST_LABEL = 16 << 20  # bytes of a label file of one image
LARGEST_LIST = 1 << 30  # bytes of a list of images

_VALIDATION = ("val", "valid", "validation")


Row = tuple[float, float, float, float, int, bool, float]


@dataclass(slots=True)
class AnnotatedImage:
    """An image and its annotated objects."""

    path: str
    width: int
    height: int
    rows: list[Row] = field(default_factory=list)  # (x1, y1, x2, y2, category id, crowd, area)
    masks: list[bytes] = field(default_factory=list)  # per row (see `ops/masks`), if masks are read
    # Per row x, y, visibility, x, y, ... in pixels, if keypoints are read; empty if not labeled.
    keypoints: list[tuple[float, ...]] = field(default_factory=list)


@dataclass
class Source:
    """Validated annotations of one split: images by id, in the order of the files.

    If the format has only class names, `ids_known` is False and ids are assigned from 0. `supercategories` are those of
    the files, by category id. `groups` are ids of categories that may only group others, as in Roboflow's exports.
    `names_seen` means that no file lists the classes, so that they are those of the objects.
    `poses` are the keypoints of categories, if they are read.
    """

    name: str
    images: dict[int, AnnotatedImage] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)
    repairs: Repairs = field(default_factory=Repairs)
    ids_known: bool = True
    supercategories: dict[int, str] = field(default_factory=dict)
    groups: set[int] = field(default_factory=set)
    names_seen: bool = False
    poses: dict[int, Pose] = field(default_factory=dict)

    @property
    def used(self) -> set[str]:
        """Names of the categories that an object or crowd region has."""
        ids = {row[4] for image in self.images.values() for row in image.rows}
        return {self.categories[category_id] for category_id in ids}

    def has(self, kind: str) -> bool:
        """Whether any object has a mask (`catalog.MASKS`) or keypoints (`catalog.KEYPOINTS`)."""
        return any(any(getattr(image, kind)) for image in self.images.values())

    def records(self, class_map: ClassMap) -> list[ImageRecord]:
        index_of = {category_id: class_map.index_of(category_id) for category_id in self.categories}
        most = max(class_map.keypoint_counts, default=0)
        return [_record(image_id, image, index_of, most) for image_id, image in self.images.items()]

    def renumber(self, categories: Mapping[int, str]) -> None:
        """Use the ids of `categories` (id -> name), which must have every name of this source, without duplicates."""
        id_of = {name: category_id for category_id, name in categories.items()}
        new = {old: id_of[name] for old, name in self.categories.items()}
        for image in self.images.values():
            image.rows = [(*row[:4], new[row[4]], *row[5:]) for row in image.rows]
        self.categories = {new[old]: name for old, name in self.categories.items()}
        self.poses = {new[old]: pose for old, pose in self.poses.items() if old in new}


def spellings(split: str) -> tuple[str, ...]:
    """Equivalent names of a split, the given one first (Roboflow uses `valid` for `val`)."""
    return (split, *(name for name in _VALIDATION if name != split)) if split in _VALIDATION else (split,)


def read_bytes(path: str, what: str, limit: int = LARGEST_LABEL) -> bytes:
    """Content of a label file; DataError if it cannot be read or is too large. Messages call the file `what`."""

    def read() -> bytes:
        with open_regular(path) as file:
            return file.read(limit + 1)

    try:
        data = retried(read, path)
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read: {error.strerror or error}.") from error
    if len(data) > limit:
        raise DataError(f"{what} {path} is larger than the limit of {limit >> 20} MB.")
    return data


def refuse_link_out(path: str, root: str, what: str) -> None:
    """DataError if a file with class or image names is a link to a file outside its dataset.

    Images, label files and folders may be links, but the text of such a file ends up in results and messages.
    """
    real, inside = os.path.realpath(path), os.path.realpath(root)
    if os.path.islink(path) and os.path.commonpath([real, inside]) != inside:
        raise DataError(
            f"{what} {path} is a link that points outside the dataset {root}; expected a file in the dataset. Copy the "
            "file there, or set its path in the spec."
        )


def area_of(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def fitted_box(
    corners: tuple[float, float, float, float], image: AnnotatedImage, repairs: Repairs, where: str
) -> tuple[float, float, float, float] | None:
    """A box (xyxy pixels) clipped to its image (size 0 means unknown); None if nothing is left."""
    left, top, right, bottom = corners
    if not all(map(math.isfinite, corners)):
        repairs.add("box_not_finite", where)
        return None
    if right <= left or bottom <= top:
        repairs.add_box("box_empty", where, image.path, corners)
        return None
    limit_x, limit_y = image.width or math.inf, image.height or math.inf
    if left >= limit_x or top >= limit_y or right <= 0 or bottom <= 0:
        repairs.add_box("box_outside", where, image.path, corners)
        return None
    if min(left, top) < -OVERHANG or right > limit_x + OVERHANG or bottom > limit_y + OVERHANG:
        repairs.add_box("box_clipped", where, image.path, corners)
        return max(left, 0.0), max(top, 0.0), min(right, limit_x), min(bottom, limit_y)
    return corners


def drop_missing_images(source: Source, policy: str) -> int:
    """Check that the files of all images exist, with one listing per folder; returns the number of missing images.

    `policy` is `skip` (drop them and count them in the repairs) or `error`. It is always an error if no file exists,
    because then the folder is wrong.
    """
    missing = _missing(image.path for image in source.images.values())
    if not missing:
        return 0
    examples = first_of(sorted(missing), 3)
    total = len(source.images)
    if policy == "error" or len(missing) == len({image.path for image in source.images.values()}):
        raise DataError(
            f"{len(missing)} of {total} image files of {source.name} do not exist: {examples}. Check the image folder "
            "and the file names in the annotations."
        )
    for image_id, image in list(source.images.items()):
        if image.path in missing:
            source.repairs.add("image_missing", image.path)
            del source.images[image_id]
    return total - len(source.images)


def _missing(paths: Iterable[str]) -> set[str]:
    folders: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        folder, name = os.path.split(path)
        folders[folder].add(name)
    missing = set()
    for folder, names in folders.items():
        present = set(names_in(folder))
        missing |= {os.path.join(folder, name) for name in names - present}
    return missing


def _record(image_id: int, image: AnnotatedImage, index_of: Mapping[int, int], most_keypoints: int) -> ImageRecord:
    if not image.rows:
        return ImageRecord(image.path, image_id, image.width, image.height)
    keypoints = None
    if image.keypoints:
        keypoints = np.zeros((len(image.rows), most_keypoints, 3))
        for row, values in zip(keypoints, image.keypoints, strict=True):
            row[: len(values) // 3] = np.reshape(values, (-1, 3))
    return ImageRecord(
        path=image.path,
        image_id=image_id,
        width=image.width,
        height=image.height,
        boxes=np.array([row[:4] for row in image.rows], dtype=np.float64),
        labels=np.array([index_of[row[4]] for row in image.rows], dtype=np.int64),
        iscrowd=np.array([row[5] for row in image.rows], dtype=np.bool_),
        area=np.array([row[6] for row in image.rows], dtype=np.float64),
        masks=image.masks or None,
        keypoints=keypoints,
    )
