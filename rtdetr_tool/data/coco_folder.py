"""Data set folders with COCO files: COCO's own layout, and Roboflow's with a file in the folder of each split."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator

from rtdetr_tool.data.coco import read_source
from rtdetr_tool.data.faults import names_in
from rtdetr_tool.data.source import Source, spellings
from rtdetr_tool.errors import DataError, MissingSplit

COCO_LOOKED_FOR = "annotations/instances_train.json or instances_train2017.json (COCO)"

ROBOFLOW_FILE = "_annotations.coco.json"
ROBOFLOW_LOOKED_FOR = f"train/{ROBOFLOW_FILE} (Roboflow's COCO export)"


def coco_evidence(place: str) -> str:
    """The annotation file that makes `place` a COCO data set, or nothing."""
    found = sorted(name for name in names_in(os.path.join(place, "annotations")) if re.fullmatch(_INSTANCES, name))
    return os.path.join("annotations", found[0]) if found else ""


def read_coco_split(place: str, split: str, masks: bool = False) -> Source:
    """`annotations/instances_<split>.json` with the images in the folder of the same name, also below `images`."""
    folder = os.path.join(place, "annotations")
    matches = [
        found
        for name in spellings(split)
        for file in names_in(folder)
        if (found := re.fullmatch(_INSTANCES, file)) and re.fullmatch(rf"{re.escape(name)}(\d{{4}})?", found[1])
    ]
    if len(matches) != 1:
        there = ", ".join(names_in(folder)[:8]) or "nothing"
        problem = "several annotation files" if matches else "no annotation file"
        raise (DataError if matches else MissingSplit)(
            f"{folder} has {problem} for the split {split!r} (instances_{split}.json or instances_{split}2017.json); "
            f"there is {there}. Name image_dir and json_file of the source instead of dataset_dir."
        )
    names = (matches[0][1], *spellings(split))
    places = [os.path.join(place, *above, name) for name in names for above in ((), ("images",))]
    images = next((path for path in places if os.path.isdir(path)), None)
    if images is None:
        raise DataError(f"There is no folder of images for {matches[0][0]}; looked for {', '.join(places[:2])}.")
    return read_source(images, os.path.join(folder, matches[0][0]), masks)


def roboflow_evidence(place: str) -> str:
    """The annotation file that makes `place` a data set of Roboflow, or nothing."""
    return next((os.path.relpath(path, place) for path in _roboflow_files(place)), "")


def read_roboflow_split(place: str, split: str, masks: bool = False) -> Source:
    """`<split>/_annotations.coco.json` with the images beside it; without `split`, `place` is one by itself."""
    folders = [os.path.join(place, name) for name in spellings(split)] if split else [place]
    for folder in folders:
        path = os.path.join(folder, ROBOFLOW_FILE)
        if os.path.isfile(path):
            source = read_source(folder, path, masks)
            source.groups = _groups(source)
            return source
    there = ", ".join(os.path.relpath(path, place) for path in _roboflow_files(place)) or "none"
    wanted = os.path.relpath(os.path.join(folders[0], ROBOFLOW_FILE), place)
    raise MissingSplit(f"{place} has no {wanted}; there is {there}.")


_INSTANCES = r"instances_(.+)\.json"


def _roboflow_files(place: str) -> Iterator[str]:
    for pattern in ((ROBOFLOW_FILE,), ("*", ROBOFLOW_FILE)):
        yield from sorted(glob.glob(os.path.join(glob.escape(place), *pattern)))


def _groups(source: Source) -> set[int]:
    """Categories that are another one's supercategory.

    Roboflow's exports have one as category 0, named like the project. Whether one is a class as well, because objects
    have it, is decided over all splits.
    """
    above = source.supercategories
    return {
        category_id
        for category_id, name in source.categories.items()
        if any(group == name and other != category_id for other, group in above.items())
    }
