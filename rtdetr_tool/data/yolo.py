"""Read YOLO datasets: a `data.yaml`, images, and one label file per image.

A line of a label file is `class x y width height`: class index, center and size as fractions of the image's sides. A
longer line `class x1 y1 x2 y2 x3 y3 ...` is a polygon. With `kpt_shape` in the YAML file there are no polygons, and a
longer line is a box and keypoints: `class x y width height x1 y1 [visibility1] x2 y2 [visibility2] ...`.

The labels of `.../images/a/b.jpg` are in `.../labels/a/b.txt`, or next to the image if there is no folder `images`. An
image without a label file, or with an empty one, has no objects.
"""

from __future__ import annotations

import os

import numpy as np

from rtdetr_tool.catalog import BOXES, KEYPOINTS, MASKS
from rtdetr_tool.class_names import unique_names
from rtdetr_tool.data.coco_keypoints import PoseReader
from rtdetr_tool.data.decoding import image_size
from rtdetr_tool.data.faults import exists, walked
from rtdetr_tool.data.folder import search
from rtdetr_tool.data.image_formats import is_companion
from rtdetr_tool.data.source import (
    LARGEST_LIST,
    AnnotatedImage,
    Source,
    area_of,
    fitted_box,
    read_bytes,
    refuse_link_out,
)
from rtdetr_tool.data.units import CXCYWH, BoxUnits
from rtdetr_tool.data.yolo_yaml import Description, describe, yaml_of
from rtdetr_tool.errors import DataError
from rtdetr_tool.ops.masks import UNKNOWN, rasterize

LOOKED_FOR = "data.yaml (with names and the folders of the splits)"

_NOT_LABELS = ("classes.txt", "labels.txt", "notes.txt")
_EXPECTED = "class index, center x, center y, width and height as fractions (0..1) of the image's sides"


def evidence(place: str) -> str:
    """The YAML file that identifies `place` as a YOLO dataset, or an empty string."""
    path = yaml_of(place)
    return os.path.basename(path) if path else ""


def read_split(place: str, split: str, kind: str = BOXES) -> Source:
    """Read the images and labels of a split; `place` is the folder or the YAML file."""
    return _Reader(describe(place), split, kind).read()


class _Reader:
    """Reads the images and labels of one split."""

    def __init__(self, description: Description, split: str, kind: str) -> None:
        self.description = description
        self.split = split
        self.kind = kind
        self.source = Source(
            f"{os.path.dirname(description.path) or description.path} (YOLO, {split})",
            ids_known=False,
        )
        self.source.categories = unique_names(dict(enumerate(description.names)), self.source.repairs.add)
        if kind == KEYPOINTS and description.pose:
            self.source.poses = dict(description.pose.by_class)
        self.poses = PoseReader(description.path, self.source)
        self.units = BoxUnits(CXCYWH, normalized=True)
        self.label_files = self.dropped = 0  # dropped boxes

    def read(self) -> Source:
        images: dict[str, None] = {}
        expected: dict[str, str] = {}  # label file -> its image
        for text in self.description.entries(self.split):
            path = self.description.resolved(text, (self.description.root, os.path.dirname(self.description.path)))
            if os.path.isdir(path):
                contents = search(path)
                for file in contents.skipped:
                    if not is_companion(file):
                        self.source.repairs.add("file_not_an_image", file)
                images.update(dict.fromkeys(contents.images))
                expected.update(self._label_files(path))
            elif path.lower().endswith(".txt"):
                images.update(dict.fromkeys(self._image_list(path)))
            else:
                raise DataError(
                    f"{self.description.path} has the path {text!r}; expected a folder or a list of images (.txt)."
                )
        for path in images:
            label = self._label_of(path)
            expected.pop(label, None)
            self._add(path, label)
        if not self.label_files:
            raise DataError(
                f"None of the {len(images)} images of {self.source.name} has a label file; expected the first at "
                f"{self._label_of(next(iter(images)))}. Put label files in a folder `labels` next to the folder "
                "`images`."
            )
        for image in expected.values():  # missing
            self.source.images[len(self.source.images) + 1] = AnnotatedImage(image, 0, 0)
        if self.dropped and not any(image.rows for image in self.source.images.values()):
            lines = "; ".join(self.source.repairs.lines())
            raise DataError(
                f"None of the {self.dropped} boxes of {self.source.name} is valid: {lines}. Expected lines of "
                f"{_EXPECTED}."
            )
        self.units.check(self.source.name, self.source.repairs)
        return self.source

    def _image_list(self, path: str) -> list[str]:
        """The images listed in a text file, one per line, relative to its folder or to the dataset."""
        if self.description.confined:
            refuse_link_out(path, self.description.root, "The list of images")
        text = read_bytes(path, "The list of images", LARGEST_LIST).decode("utf-8-sig", "surrogateescape")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines:
            raise DataError(f"The list of images {path} is empty; expected one image per line.")
        first = self.description.resolved(lines[0], starts := (os.path.dirname(path), self.description.root))
        start = next(s for s in starts if os.path.normpath(os.path.join(s, lines[0])) == first)
        images = [os.path.normpath(os.path.join(start, line)) for line in lines]
        for image in images:
            if not self.description.allows(image):
                self.description.resolved(image, (start,))  # raises with the reason
        return images

    def _label_of(self, image: str) -> str:
        """The label file of an image: the last folder `images` below the root of the dataset becomes `labels`."""
        root = os.path.join(self.description.root, "")
        base = len(root) - 1 if image.startswith(root) else 0
        head, separator, tail = image[base:].rpartition("/images/")
        return os.path.splitext(f"{image[:base]}{head}/labels/{tail}" if separator else image)[0] + ".txt"

    def _label_files(self, folder: str) -> dict[str, str]:
        """All label files of images in `folder`, with their images; empty if labels are next to the images."""
        labels = os.path.dirname(self._label_of(os.path.join(folder, "_.jpg")))
        if labels == folder:
            return {}
        files = sorted(
            os.path.join(os.path.relpath(parent, labels), name)
            for parent, _, names in walked(labels)
            for name in names
            if name.endswith(".txt") and name not in _NOT_LABELS
        )
        return {
            os.path.normpath(os.path.join(labels, name)): os.path.normpath(os.path.join(folder, name[:-4] + ".*"))
            for name in files
        }

    def _add(self, path: str, label: str) -> None:
        image = AnnotatedImage(path, 0, 0)
        self.source.images[len(self.source.images) + 1] = image
        labeled = exists(label)
        self.label_files += labeled
        if not labeled:
            self.source.repairs.add("image_without_label", os.path.basename(path))
        try:
            image.width, image.height = image_size(path)
        except DataError:  # reported when the file is checked or decoded
            return
        if labeled:
            self._read_labels(label, image)

    def _read_labels(self, label: str, image: AnnotatedImage) -> None:
        data = read_bytes(label, "The label file").removeprefix(b"\xef\xbb\xbf")
        for number, line in enumerate(data.splitlines(), 1):
            parts = line.split()
            if not parts:
                continue
            where = f"{label}, line {number}"
            label_index, (x1, y1, x2, y2), outline, points = self._object(parts, where)
            corners = (x1 * image.width, y1 * image.height, x2 * image.width, y2 * image.height)
            box = fitted_box(corners, image, self.source.repairs, where)
            if box is None:
                self.dropped += 1
            else:
                image.rows.append((*box, label_index, False, area_of(box)))
                if self.kind == MASKS:
                    image.masks.append(self._mask(outline, image, where))
                elif self.kind == KEYPOINTS and (pose := self.description.pose):
                    pixels = pose.in_pixels(points, image.width, image.height)
                    image.keypoints.append(self.poses.points(pixels, label_index, image, where))

    def _mask(self, outline: list[float], image: AnnotatedImage, where: str) -> bytes:
        pixels = np.array(outline).reshape(-1, 2) * (image.width, image.height)
        counts = rasterize([pixels.ravel().tolist()], image.height, image.width)
        if not counts:
            self.source.repairs.add("mask_malformed" if outline else "mask_missing", where)
        return counts or UNKNOWN

    def _object(
        self, parts: list[bytes], where: str
    ) -> tuple[int, tuple[float, float, float, float], list[float], list[float]]:
        """Class index, xyxy box, polygon and keypoints (empty if none) of a line; as fractions of the sides."""
        try:
            if any(b"_" in part for part in parts):
                raise ValueError
            index, *numbers = map(float, parts)
        except ValueError:
            raise self._malformed(where, "not all values are numbers") from None
        names, pose = self.description.names, self.description.pose
        if not 0 <= index < len(names) or index != int(index):
            hint = " Class indices start at 0." if index == len(names) else ""
            raise DataError(
                f"{where}: class index {index:g} is invalid; {self.description.path} has {len(names)} classes, 0 to "
                f"{len(names) - 1}.{hint} Fix the line, or add the class to `names`."
            )
        if len(numbers) == 4 or (pose and len(numbers) == 4 + pose.length):
            if len(numbers) > 4 and self.kind != KEYPOINTS:
                self.source.repairs.add("keypoints_left_out", where)
            x, y, width, height = numbers[:4]
            self.units.add((x, y, width, height), 1, 1)
            return int(index), (x - width / 2, y - height / 2, x + width / 2, y + height / 2), [], numbers[4:]
        if not pose and len(numbers) >= 6 and len(numbers) % 2 == 0:
            if self.kind != MASKS:
                self.source.repairs.add("outline_boxed", where)
            box = (min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2]))
            return int(index), box, numbers, []
        hint = " (a score? expected labels, not predictions)" if len(numbers) == 5 else ""
        raise self._malformed(where, f"{len(parts)} values{hint}")

    def _malformed(self, where: str, reason: str) -> DataError:
        pose = self.description.pose
        longer = f"optionally followed by {pose.expected()}" if pose else "or a polygon of at least 3 points"
        return DataError(f"{where}: {reason}; expected {_EXPECTED}, {longer}.")
