"""Dataset folders with COCO files: COCO's own layout, and Roboflow's with one file per split folder."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator

from rtdetr_tool.catalog import BOXES, KEYPOINTS
from rtdetr_tool.data.coco import read_source
from rtdetr_tool.data.faults import names_in
from rtdetr_tool.data.source import Source, spellings
from rtdetr_tool.errors import DataError, MissingSplit
from rtdetr_tool.messages import first_of

COCO_LOOKED_FOR = "annotations/instances_train.json or instances_train2017.json (COCO)"

ROBOFLOW_FILE = "_annotations.coco.json"
ROBOFLOW_LOOKED_FOR = f"train/{ROBOFLOW_FILE} (Roboflow's COCO export)"


def coco_evidence(place: str) -> str:
    """The annotation file that identifies `place` as a COCO dataset, or an empty string."""
    names = sorted(name for name in names_in(os.path.join(place, "annotations")) if re.fullmatch(_INSTANCES, name))
    return os.path.join("annotations", names[0]) if names else ""


def read_coco_split(place: str, split: str, kind: str = BOXES) -> Source:
    """Read `annotations/instances_<split>.json` with images in `<split>/` or `images/<split>/`.

    With `kind` keypoints it is `annotations/person_keypoints_<split>.json`, if the folder has that. If a folder has no
    `instances` file at all, boxes are read from there as well.
    """
    folder = os.path.join(place, "annotations")
    kinds = ("person_keypoints", "instances") if kind == KEYPOINTS else ("instances",)
    if not any(name.startswith("instances_") for name in names_in(folder)):
        kinds = ("person_keypoints",)
    matches = next(filter(None, (_files_of(folder, split, start) for start in kinds)), [])
    if len(matches) != 1:
        content = first_of(names_in(folder), 8) or "no files"
        problem = "several annotation files" if matches else "no annotation file"
        raise (DataError if matches else MissingSplit)(
            f"{folder} has {problem} for the split {split!r}; expected instances_{split}.json or "
            f"instances_{split}2017.json, but it contains {content}. Set image_dir and json_file of the source instead "
            "of dataset_dir."
        )
    names = (matches[0][1], *spellings(split))
    candidates = [os.path.join(place, *above, name) for name in names for above in ((), ("images",))]
    images = next((path for path in candidates if os.path.isdir(path)), None)
    if images is None:
        raise DataError(f"{matches[0][0]} has no image folder; expected {' or '.join(candidates[:2])}.")
    return read_source(images, os.path.join(folder, matches[0][0]), kind)


def _files_of(folder: str, split: str, start: str) -> list[re.Match[str]]:
    """The annotation files of a split whose names begin with `start`."""
    return [
        match
        for name in spellings(split)
        for file in names_in(folder)
        if (match := re.fullmatch(rf"{start}_({re.escape(name)}(?:\d{{4}})?)\.json", file))
    ]


def roboflow_evidence(place: str) -> str:
    """The annotation file that identifies `place` as a Roboflow dataset, or an empty string."""
    return next((os.path.relpath(path, place) for path in _roboflow_files(place)), "")


def read_roboflow_split(place: str, split: str, kind: str = BOXES) -> Source:
    """Read `<split>/_annotations.coco.json` with images in the same folder; without `split`, the one in `place`."""
    folders = [os.path.join(place, name) for name in spellings(split)] if split else [place]
    for folder in folders:
        path = os.path.join(folder, ROBOFLOW_FILE)
        if os.path.isfile(path):
            source = read_source(folder, path, kind)
            source.groups = _groups(source)
            return source
    present = ", ".join(os.path.relpath(path, place) for path in _roboflow_files(place)) or "no annotation file"
    expected = os.path.relpath(os.path.join(folders[0], ROBOFLOW_FILE), place)
    raise MissingSplit(f"{place} has no {expected}; it contains {present}.")


_INSTANCES = r"(?:instances|person_keypoints)_(.+)\.json"


def _roboflow_files(place: str) -> Iterator[str]:
    for pattern in ((ROBOFLOW_FILE,), ("*", ROBOFLOW_FILE)):
        yield from sorted(glob.glob(os.path.join(glob.escape(place), *pattern)))


def _groups(source: Source) -> set[int]:
    """Categories that are the supercategory of another one.

    Roboflow's exports have one as category 0, named after the project. Whether it is also a class, because objects have
    it, is decided over all splits.
    """
    above = source.supercategories
    return {
        category_id
        for category_id, name in source.categories.items()
        if any(group == name and other != category_id for other, group in above.items())
    }
