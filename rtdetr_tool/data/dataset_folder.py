"""Detect the format of a dataset folder and read one of its splits."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from rtdetr_tool.catalog import BOXES
from rtdetr_tool.data import coco_folder, voc, yolo
from rtdetr_tool.data.source import Source
from rtdetr_tool.errors import DataError, MissingData
from rtdetr_tool.messages import first_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """A dataset format: how to recognize and read it."""

    title: str
    looked_for: str
    evidence: Callable[[str], str]  # folder -> the file that identifies the format, or an empty string
    read: Callable[[str, str, str], Source]  # folder, name of the split, and what to read (`catalog.PREDICTS`)
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
    "voc": Format("Pascal VOC", voc.LOOKED_FOR, voc.evidence, lambda place, split, kind: voc.read_split(place, split)),
}


def read_dataset_folder(place: str, split: str = "", name: str = "auto", kind: str = BOXES) -> Source:
    """Read a split of the dataset in the folder `place`, in the format `name` (a key of `FORMATS`, or `auto`).

    Without `split`, the folder itself is the split. `place` may also be the YAML file of a YOLO dataset.
    """
    if not os.path.exists(place):
        raise MissingData(f"dataset_dir: {place!r} does not exist")
    matches = {key: text for key, entry in FORMATS.items() if (text := entry.evidence(place))}
    if name == "auto":
        name = _only_match(place, matches)
    elif name not in matches:
        hint = f" It looks like {', '.join(FORMATS[key].title for key in matches)}." if matches else _content(place)
        raise DataError(f"dataset.format is {name}, but {place} has no {FORMATS[name].looked_for}.{hint}")
    selected = FORMATS[name]
    if selected.needs_split and not split:
        raise DataError(f"{place} is a {selected.title} dataset; set `split` (train, val or test) next to dataset_dir.")
    logger.info("Reading %s as %s (it has %s)", place, selected.title, matches[name])
    return selected.read(place, split, kind)


def _only_match(place: str, matches: dict[str, str]) -> str:
    if len(matches) == 1:
        return next(iter(matches))
    if not matches:
        lines = "".join(f"\n  - {entry.looked_for}" for entry in FORMATS.values())
        raise DataError(f"{place} has no dataset in a supported format.{_content(place)} Expected one of:{lines}")
    formats = ", ".join(f"{FORMATS[key].title} ({text})" for key, text in matches.items())
    raise DataError(
        f"{place} has datasets in {len(matches)} formats: {formats}. Set dataset.format to one of {', '.join(matches)}."
    )


def _content(place: str) -> str:
    if not os.path.isdir(place):
        return " It is a file; expected a folder, or the YAML file of a YOLO dataset."
    return f" It contains {first_of(sorted(os.listdir(place)), 8) or 'no files'}."
