"""Reading data sets in YOLO's layout: a `data.yaml`, images, and one text file of labels per image.

A line of a label file is `class x y width height`: class index, centre and size as shares of the image's sides. A
longer line is `class x1 y1 x2 y2 x3 y3 ...`, an outline; with `kpt_shape` in the yaml it is a box and keypoints
instead. The labels of `.../images/a/b.jpg` are `.../labels/a/b.txt`; without a folder `images` they lie beside the
image. An image without a label file, or with an empty one, is an image without objects.
"""

from __future__ import annotations

import os

import numpy as np

from rtdetr_tool.data.class_names import unique_names
from rtdetr_tool.data.faults import exists, walked
from rtdetr_tool.data.folder import search
from rtdetr_tool.data.image_formats import is_companion
from rtdetr_tool.data.preprocess import image_size
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
from rtdetr_tool.ops.masks import UNKNOWN, rasterise

LOOKED_FOR = "data.yaml (with names and the folders of the splits)"

_NOT_LABELS = ("classes.txt", "labels.txt", "notes.txt")
_EXPECTED = "class index, then centre x, centre y, width and height as shares (0..1) of the image's sides"


def evidence(place: str) -> str:
    """The yaml file that makes `place` a YOLO data set, or nothing."""
    path = yaml_of(place)
    return os.path.basename(path) if path else ""


def read_split(place: str, split: str, masks: bool = False) -> Source:
    """The images and labels of a split; `place` is the folder, or the yaml file itself."""
    return _Reader(describe(place), split, masks).read()


class _Reader:
    """Reads the images and labels of one split."""

    def __init__(self, description: Description, split: str, masks: bool) -> None:
        self.description = description
        self.split = split
        self.masks = masks
        self.source = Source(
            f"{os.path.dirname(description.path) or description.path} (YOLO, {split})",
            ids_known=False,
        )
        self.source.categories = unique_names(dict(enumerate(description.names)), self.source.repairs)
        self.units = BoxUnits(CXCYWH, shares=True)
        self.found = self.dropped = 0  # label files, boxes

    def read(self) -> Source:
        images: dict[str, None] = {}
        expected: dict[str, str] = {}  # label file -> the image it is for
        for text in self.description.entries(self.split):
            path = self.description.resolved(text, (self.description.root, os.path.dirname(self.description.path)))
            if os.path.isdir(path):
                found = search(path)
                for file in found.skipped:
                    if not is_companion(file):
                        self.source.repairs.add("file_not_an_image", file)
                images.update(dict.fromkeys(found.images))
                expected.update(self._label_files(path))
            elif path.lower().endswith(".txt"):
                images.update(dict.fromkeys(self._image_list(path)))
            else:
                raise DataError(
                    f"{self.description.path} names {text!r}; a folder or a list of images (.txt) is expected."
                )
        for path in images:
            label = self._label_of(path)
            expected.pop(label, None)
            self._add(path, label)
        if not self.found:
            raise DataError(
                f"None of the {len(images)} images of {self.source.name} has a label file; the first one was expected "
                f"at {self._label_of(next(iter(images)))}. Labels belong in a folder `labels` beside the folder "
                "`images`."
            )
        for image in expected.values():  # missing
            self.source.images[len(self.source.images) + 1] = AnnotatedImage(image, 0, 0)
        if self.dropped and not any(image.rows for image in self.source.images.values()):
            lines = "; ".join(self.source.repairs.lines())
            raise DataError(
                f"{self.source.name} has {self.dropped} boxes and not one is usable: {lines}. A line must be "
                f"{_EXPECTED}."
            )
        self.units.check(self.source.name, self.source.repairs)
        return self.source

    def _image_list(self, path: str) -> list[str]:
        """The images that a text file names, one per line, seen from its own folder or from the data set's."""
        if self.description.confined:
            refuse_link_out(path, self.description.root, "The list of images")
        text = read_bytes(path, "The list of images", LARGEST_LIST).decode("utf-8-sig", "surrogateescape")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines:
            raise DataError(f"The list of images {path} is empty.")
        first = self.description.resolved(lines[0], starts := (os.path.dirname(path), self.description.root))
        start = next(s for s in starts if os.path.normpath(os.path.join(s, lines[0])) == first)
        images = [os.path.normpath(os.path.join(start, line)) for line in lines]
        for image in images:
            if not self.description.allows(image):
                self.description.resolved(image, (start,))  # says why not
        return images

    def _label_of(self, image: str) -> str:
        """The label file of an image: of the folders below the data set's own, the last `images` becomes `labels`."""
        root = os.path.join(self.description.root, "")
        base = len(root) - 1 if image.startswith(root) else 0
        head, found, tail = image[base:].rpartition("/images/")
        return os.path.splitext(f"{image[:base]}{head}/labels/{tail}" if found else image)[0] + ".txt"

    def _label_files(self, folder: str) -> dict[str, str]:
        """Every label file that images of `folder` can have, and its image; none where labels lie beside the images."""
        labels = os.path.dirname(self._label_of(os.path.join(folder, "_.jpg")))
        if labels == folder:
            return {}
        found = sorted(
            os.path.join(os.path.relpath(parent, labels), name)
            for parent, _, names in walked(labels)
            for name in names
            if name.endswith(".txt") and name not in _NOT_LABELS
        )
        return {
            os.path.normpath(os.path.join(labels, name)): os.path.normpath(os.path.join(folder, name[:-4] + ".*"))
            for name in found
        }

    def _add(self, path: str, label: str) -> None:
        image = AnnotatedImage(path, 0, 0)
        self.source.images[len(self.source.images) + 1] = image
        labelled = exists(label)
        self.found += labelled
        if not labelled:
            self.source.repairs.add("image_without_label", os.path.basename(path))
        try:
            image.width, image.height = image_size(path)
        except DataError:  # reported when the file is looked for or decoded
            return
        if labelled:
            self._read_labels(label, image)

    def _read_labels(self, label: str, image: AnnotatedImage) -> None:
        data = read_bytes(label, "The label file").removeprefix(b"\xef\xbb\xbf")
        for number, line in enumerate(data.splitlines(), 1):
            parts = line.split()
            if not parts:
                continue
            where = f"{label}, line {number}"
            label_index, (x1, y1, x2, y2), outline = self._object(parts, where)
            corners = (x1 * image.width, y1 * image.height, x2 * image.width, y2 * image.height)
            box = fitted_box(corners, image, self.source.repairs, where)
            if box is None:
                self.dropped += 1
            else:
                image.rows.append((*box, label_index, False, area_of(box)))
                if self.masks:
                    image.masks.append(self._mask(outline, image, where))

    def _mask(self, outline: list[float], image: AnnotatedImage, where: str) -> bytes:
        pixels = np.array(outline).reshape(-1, 2) * (image.width, image.height)
        counts = rasterise([pixels.ravel()], image.height, image.width)
        if not counts:
            self.source.repairs.add("mask_malformed" if outline else "mask_missing", where)
        return counts or UNKNOWN

    def _object(
        self, parts: list[bytes], where: str
    ) -> tuple[int, tuple[float, float, float, float], list[float]]:
        """Class index, xyxy box and outline, if it has one, of a line; in shares of the sides."""
        try:
            if any(b"_" in part for part in parts):
                raise ValueError
            index, *numbers = map(float, parts)
        except ValueError:
            raise self._malformed(where, "not all of it is numbers") from None
        names = self.description.names
        if not 0 <= index < len(names) or index != int(index):
            hint = " Indices begin at 0." if index == len(names) else ""
            raise DataError(
                f"{where}: class index {index:g}, but {self.description.path} names "
                f"{len(names)} classes, 0 to {len(names) - 1}.{hint} Correct the line, or complete `names`."
            )
        if len(numbers) == 4 or (self.description.has_keypoints and len(numbers) > 4):
            if len(numbers) > 4:
                self.source.repairs.add("keypoints_left_out", where)
            x, y, width, height = numbers[:4]
            self.units.see((x, y, width, height), 1, 1)
            return int(index), (x - width / 2, y - height / 2, x + width / 2, y + height / 2), []
        if len(numbers) >= 6 and len(numbers) % 2 == 0:
            if not self.masks:
                self.source.repairs.add("outline_boxed", where)
            box = (min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2]))
            return int(index), box, numbers
        hint = "; is the sixth a score? These are labels, not predictions" if len(numbers) == 5 else ""
        raise self._malformed(where, f"it has {len(parts)} values, not 5{hint}")

    def _malformed(self, where: str, why: str) -> DataError:
        return DataError(
            f"{where} cannot be read: {why}. Expected: {_EXPECTED}; or an outline of 3 or more points."
        )
