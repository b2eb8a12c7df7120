"""Data sets that are named by their folder: which format it is, and the source of one split."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from rtdetr_tool.data import coco_folder, voc, yolo
from rtdetr_tool.data.source import Source
from rtdetr_tool.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    title: str
    looked_for: str
    evidence: Callable[[str], str]  # of a folder: what shows that it is of this format, or nothing
    read: Callable[[str, str, bool], Source]  # a folder, the name of a split, and whether masks are wanted
    needs_split: bool = False


FORMATS: dict[str, Format] = {
    "coco": Format(
        "COCO", coco_folder.COCO_LOOKED_FOR, coco_folder.coco_evidence, coco_folder.read_coco_split, needs_split=True
    ),
    "roboflow": Format(
        "Roboflow COCO",
        coco_folder.ROBOFLOW_LOOKED_FOR,
        coco_folder.roboflow_evidence,
        coco_folder.read_roboflow_split,
    ),
    "yolo": Format("YOLO", yolo.LOOKED_FOR, yolo.evidence, yolo.read_split, needs_split=True),
    "voc": Format("Pascal VOC", voc.LOOKED_FOR, voc.evidence, lambda place, split, masks: voc.read_split(place, split)),
}


def read_dataset_folder(place: str, split: str = "", name: str = "auto", masks: bool = False) -> Source:
    """The `split` of the data set in the folder `place`, in the format `name` (a key of `FORMATS`, or `auto`).

    Without `split` the folder itself is one. A YOLO data set may be named by its yaml file too.
    """
    if not os.path.exists(place):
        raise DataError(f"The data set folder {place!r} does not exist (dataset_dir).")
    found = {key: text for key, entry in FORMATS.items() if (text := entry.evidence(place))}
    if name == "auto":
        name = _the_one(place, found)
    elif name not in found:
        there = f" It looks like {', '.join(FORMATS[key].title for key in found)}." if found else _content(place)
        raise DataError(f"dataset.format is {name}, but {place} has no {FORMATS[name].looked_for}.{there}")
    chosen = FORMATS[name]
    if chosen.needs_split and not split:
        raise DataError(f"{place} is {chosen.title}: say which `split` of it (train, val, test) beside dataset_dir.")
    logger.info("%s is read as %s, because it has %s", place, chosen.title, found[name])
    return chosen.read(place, split, masks)


def _the_one(place: str, found: dict[str, str]) -> str:
    if len(found) == 1:
        return next(iter(found))
    if not found:
        lines = "".join(f"\n  - {entry.looked_for}" for entry in FORMATS.values())
        raise DataError(f"{place} has no data set of a known format.{_content(place)} Looked for:{lines}")
    shown = ", ".join(f"{FORMATS[key].title} ({text})" for key, text in found.items())
    raise DataError(
        f"{place} has data sets of {len(found)} formats: {shown}. Set dataset.format to one of {', '.join(found)}."
    )


def _content(place: str) -> str:
    if not os.path.isdir(place):
        return " It is a file; only the yaml file of a YOLO data set can be named instead of a folder."
    names = sorted(os.listdir(place))
    return f" In it there is {', '.join(names[:8]) or 'nothing'}{', ...' if len(names) > 8 else ''}."
