"""Read Pascal VOC datasets: one XML file per image.

Either in the layout of the challenge, `JPEGImages/`, `Annotations/` and `ImageSets/Main/<split>.txt`, or as written by
export tools: a folder per split, with the XML files next to the images or in those two folders. Box coordinates are
pixels from 1, both ends inclusive, so `xmin 1, xmax 640` spans an image of 640 pixels. Objects marked `difficult` are
not trained on and not scored, as in the challenge; they are represented as crowd regions.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from rtdetr_tool.data.decoding import image_size
from rtdetr_tool.data.faults import names_in, retried
from rtdetr_tool.data.image_formats import EXTENSIONS, is_companion, is_image
from rtdetr_tool.data.source import (
    LARGEST_LIST,
    LARGEST_SIDE,
    AnnotatedImage,
    Source,
    area_of,
    fitted_box,
    read_bytes,
    refuse_link_out,
    spellings,
)
from rtdetr_tool.data.units import XYXY, BoxUnits
from rtdetr_tool.data.voc_xml import number_of, parse_xml, text_of
from rtdetr_tool.errors import DataError, MissingSplit

LOOKED_FOR = "Annotations/*.xml with JPEGImages/, or folders train, valid, test of images with *.xml (Pascal VOC)"
NAMES_FILE = "labels.txt"

_ANNOTATIONS = ("Annotations", "annotations")
_IMAGES = ("JPEGImages", "images")
_SPLITS = ("train", "val", "test")


def evidence(place: str) -> str:
    """The location of XML files that identify `place` as a Pascal VOC dataset, or an empty string."""
    bases = ["", *(name for split in _SPLITS for name in spellings(split))]
    folders = [os.path.join(base, inner) for base in bases for inner in ("", *_ANNOTATIONS)]
    return next((os.path.join(folder, "*.xml") for folder in folders if _has_xml(os.path.join(place, folder))), "")


def read_split(place: str, split: str) -> Source:
    """Read the images and objects of a split; without `split`, those of the folder `place` itself."""
    return _Reader(_find(place, split), split).read()


@dataclass(frozen=True)
class _Files:
    """Folders of a split."""

    root: str
    images: str
    annotations: str
    listed: str = ""  # file that lists the images of the split, if any


def _find(place: str, split: str) -> _Files:
    """Find the folders of a split."""
    for name in spellings(split) if split else ():
        listed = os.path.join(place, "ImageSets", "Main", f"{name}.txt")
        if os.path.isfile(listed):
            return _Files(place, *_folders(place), listed)
    bases = [os.path.join(place, name) for name in spellings(split)] if split else [place]
    for base in bases:
        if os.path.isdir(base):
            return _Files(place, *_folders(base))
    lists, folders = os.path.join("ImageSets", "Main", f"{split}.txt"), " or ".join(spellings(split))
    raise MissingSplit(
        f"{place} (Pascal VOC) has no split {split!r}; expected {lists} or a folder {folders}. To use a folder without "
        "splits, set it as dataset_dir of a data source, without `split`."
    )


def _folders(base: str) -> tuple[str, str]:
    """The folders of images and of XML files; both are `base` if the files are next to each other."""
    annotations = next((p for n in _ANNOTATIONS if os.path.isdir(p := os.path.join(base, n))), base)
    return next((p for n in _IMAGES if os.path.isdir(p := os.path.join(base, n))), base), annotations


def _has_xml(folder: str) -> bool:
    return any(name.lower().endswith(".xml") for name in names_in(folder))


class _Reader:
    """Reads the images and objects of one split."""

    def __init__(self, files: _Files, split: str) -> None:
        self.files = files
        name = f"{files.root} (Pascal VOC{', ' if split else ''}{split})"
        self.source = Source(name, ids_known=False)
        self.names_file = os.path.join(files.root, NAMES_FILE)
        self.order = self._read_names() if os.path.isfile(self.names_file) else None
        self.label_files = 0
        self.units = BoxUnits(XYXY)
        self.numbers: dict[str, int] = {}  # of the objects' names, in the order in which they appear

    def read(self) -> Source:
        images = self._images()
        labels = _by_stem(_files_of(self.files.annotations), (".xml",))
        if self.files.listed:
            for stem in self._listed({*images, *labels}):
                self._add(stem, images.get(stem), labels.get(stem))
        else:
            for stem, label in labels.items():
                self._add(stem, images.get(stem), label)
            annotated = {image.path for image in self.source.images.values()}
            for stem, path in images.items():
                if path not in annotated:
                    self._add(stem, path, None)
        if not self.label_files:
            raise DataError(
                f"None of the {len(self.source.images)} images of {self.source.name} has an XML file; expected them in "
                f"{self.files.annotations}."
            )
        names = self.order or sorted(self.numbers)
        if not names:
            raise DataError(
                f"{self.source.name} has no objects, so its classes are unknown. List them in {self.names_file}, one "
                "per line."
            )
        index_of = {self.numbers[name]: index for index, name in enumerate(names) if name in self.numbers}
        for image in self.source.images.values():
            image.rows = [(*row[:4], index_of[row[4]], *row[5:]) for row in image.rows]
        self.source.categories = dict(enumerate(names))
        self.source.names_seen = self.order is None
        self.units.check(self.source.name, self.source.repairs)
        return self.source

    def _images(self) -> dict[str, str]:
        """Image files by name without extension; other files and further images with the same name are counted."""
        paths, repairs = _files_of(self.files.images), self.source.repairs
        images = _by_stem(paths, EXTENSIONS)
        for path in paths:
            if not is_image(path) and not is_companion(path):
                repairs.add("file_not_an_image", path)
            elif is_image(path) and images[_stem(path)] != path:
                repairs.add("image_of_same_name", path)
        return images

    def _read_names(self) -> list[str]:
        refuse_link_out(self.names_file, self.files.root, "The list of classes")
        text = read_bytes(self.names_file, "The list of classes").decode("utf-8-sig", "replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines:
            raise DataError(f"{self.names_file} is empty; expected one class name per line.")
        names = list(dict.fromkeys(lines))
        if len(names) < len(lines):
            self.source.repairs.add("category_repeated", self.names_file, len(lines) - len(names))
        return names

    def _listed(self, known: set[str]) -> list[str]:
        """The image names in a list of `ImageSets/Main`; the rest of each line is ignored."""
        refuse_link_out(self.files.listed, self.files.root, "The list of images")
        text = read_bytes(self.files.listed, "The list of images", LARGEST_LIST).decode("utf-8-sig", "surrogateescape")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        stems = list(dict.fromkeys(line if line in known else line.split()[0] for line in lines))
        invalid = next((stem for stem in stems if "/" in stem or os.sep in stem or stem.startswith("..")), None)
        if invalid is not None:
            raise DataError(
                f"{self.files.listed} contains {invalid!r}; expected image names without folder and extension."
            )
        if not stems:
            raise DataError(f"The list of images {self.files.listed} is empty; expected one image name per line.")
        return stems

    def _add(self, stem: str, path: str | None, label: str | None) -> None:
        root = None if label is None else parse_xml(label)
        path = path or self._named(root, stem)
        image = AnnotatedImage(path, 0, 0)
        self.source.images[len(self.source.images) + 1] = image
        if root is None:
            self.source.repairs.add("image_without_label", os.path.basename(path))
        else:
            self.label_files += 1
        self._size(root, image)
        for number, entry in enumerate([] if root is None else root.iterfind("object"), 1):
            self._object(entry, image, f"{label}, object {number}")

    def _named(self, root: ElementTree.Element | None, stem: str) -> str:
        """The image path from the XML file's `filename`, for an XML file without a matching image."""
        name = "" if root is None else text_of(root, "filename").replace("\\", "/").rpartition("/")[2]
        return os.path.join(self.files.images, name or f"{stem}.*")

    def _size(self, root: ElementTree.Element | None, image: AnnotatedImage) -> None:
        if root is not None:
            width, height = (number_of(root, f"size/{side}") or 0 for side in ("width", "height"))
            if 1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE:
                image.width, image.height = int(width), int(height)
                return
            self.source.repairs.add("image_without_size", os.path.basename(image.path))
        try:
            image.width, image.height = image_size(image.path)
        except DataError:  # reported when the file is checked or decoded
            return

    def _object(self, entry: ElementTree.Element, image: AnnotatedImage, where: str) -> None:
        repairs, name = self.source.repairs, text_of(entry, "name")
        if not name:
            raise DataError(f"{where} has no <name>; expected a class name.")
        if self.order is not None and name not in self.order:
            raise DataError(
                f"{where} has the class {name!r}, which is not in {self.names_file}. Fix the name, or add the class."
            )
        number = self.numbers.setdefault(name, len(self.numbers))
        xmin, ymin, xmax, ymax = [number_of(entry, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
        if xmin is None or ymin is None or xmax is None or ymax is None:
            repairs.add("box_malformed", where)
            return
        self.units.add((xmin, ymin, xmax, ymax), image.width, image.height)
        # Pixel 1 spans 0 to 1, and the last pixel is inside the box.
        box = fitted_box((xmin - 1, ymin - 1, xmax, ymax), image, repairs, where)
        if box is None:
            return
        difficult = text_of(entry, "difficult") not in ("", "0")
        if difficult:
            repairs.add("object_difficult", where)
        image.rows.append((*box, number, difficult, area_of(box)))


def _files_of(folder: str) -> list[str]:
    """The non-hidden files of a folder, sorted by name."""

    def scan() -> list[str]:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir())

    try:
        names = retried(scan, os.path.join(folder, ""))
    except OSError as error:
        raise DataError(f"Cannot read the folder {folder}: {error.strerror or error}.") from error
    return [os.path.join(folder, name) for name in names]


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _by_stem(paths: list[str], extensions: tuple[str, ...]) -> dict[str, str]:
    """Files with one of the extensions, by name without extension; the first file of each name."""
    return {_stem(path): path for path in reversed(paths) if path.lower().endswith(extensions)}
