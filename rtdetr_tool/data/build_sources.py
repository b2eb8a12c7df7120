"""Read the data sources of the `dataset` section of a spec, with classes decided over all splits."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from rtdetr_tool.catalog import BOXES, KEYPOINTS, MASKS
from rtdetr_tool.data.coco import read_source
from rtdetr_tool.data.dataset_folder import read_dataset_folder
from rtdetr_tool.data.folder import find_images
from rtdetr_tool.data.joining import decide_classes, joined_categories, needs_other_splits
from rtdetr_tool.data.pixels import PixelFormat
from rtdetr_tool.data.source import Source, drop_missing_images
from rtdetr_tool.errors import DataError
from rtdetr_tool.families import all_families
from rtdetr_tool.spec import DatasetSpec, ExperimentSpec

# Kind -> what an object needs, the head that requires it, and files that have it; for messages.
_REQUIRED = {
    MASKS: ("a mask", "segmentation", "COCO files with `segmentation` or YOLO labels with polygons"),
    KEYPOINTS: (
        "keypoints",
        "keypoint",
        "COCO files with `keypoints`, such as person_keypoints_train2017.json, or YOLO labels with them (kpt_shape)",
    ),
}


def pixel_format_of(spec: ExperimentSpec) -> PixelFormat:
    """What images are decoded to for the model of a spec."""
    value_range = spec.dataset.value_range
    return PixelFormat(spec.model.num_channels, None if value_range is None else tuple(value_range))


def train_categories(spec: DatasetSpec) -> dict[int, str]:
    """Category id -> name of all training sources, independent of `num_classes`."""
    return joined_categories(sources_with_classes(spec, "train"))


def read_sources(spec: DatasetSpec, split: str, kind: str = BOXES, with_masks: bool = False) -> list[Source]:
    """The annotations of every source of `train`, `val` or `test`, in any format.

    Args:
        with_masks: also read masks, for copy-paste; not together with keypoints.

    Raises:
        DataError: a source has nothing of this kind (one of `catalog.PREDICTS`), or none has a mask.
    """
    entries = _entries(spec, split)
    if not entries:
        raise DataError(
            f"dataset.{split}_data_sources: required, but not set; expected image_dir and json_file, or dataset_dir"
        )
    sources = [_read(entry, split, spec.format, MASKS if with_masks else kind) for entry in entries]
    if with_masks and not any(source.has(MASKS) for source in sources):
        raise DataError(
            "dataset.augmentation.copy_paste_prob: objects are pasted by their masks, but no training object has one. "
            f"Use {_REQUIRED[MASKS][2]}, or set it to 0."
        )
    for source in sources:
        objects = sum(len(image.rows) for image in source.images.values())
        if kind != BOXES and objects and not source.has(kind):
            what, head, files = _REQUIRED[kind]
            boxes = " or ".join(filter(None, (family.boxes_only(kind) for family in all_families())))
            raise DataError(
                f"{source.name} (dataset.{split}_data_sources) has {objects} objects, but none has {what}, which a "
                f"{head} head requires. Use {files}, or train only boxes ({boxes})."
            )
    return sources


def source_images(spec: DatasetSpec, split: str, arrays: bool = False) -> list[str]:
    """Image files of `train`, `val`, `test` or `infer`: all in an image_dir, or those of the split in a dataset_dir.

    Array files (.npy) in an image_dir are only images with `arrays`.
    """
    paths: dict[str, None] = {}
    for entry in _entries(spec, split):
        if entry.get("dataset_dir"):
            source = _read(entry, split, spec.format)
            drop_missing_images(source, "skip")
            paths.update(dict.fromkeys(image.path for image in source.images.values()))
        elif entry.get("image_dir"):
            paths.update(dict.fromkeys(find_images(entry["image_dir"], arrays)))
    if not paths:
        raise DataError(f"dataset.{split}_data_sources has no images; expected at least one.")
    return list(paths)


def _read(entry: Mapping[str, Any], split: str, data_format: str, kind: str = BOXES) -> Source:
    """A source `{image_dir, json_file}` or `{dataset_dir, split}`."""
    if entry.get("dataset_dir"):
        source = read_dataset_folder(entry["dataset_dir"], entry.get("split") or "", data_format, kind)
    else:
        missing = [key for key in ("image_dir", "json_file") if not entry.get(key)]
        if missing:
            raise DataError(
                f"dataset.{split}_data_sources: {' and '.join(missing)} required, but not set in {dict(entry)}"
            )
        source = read_source(entry["image_dir"], entry["json_file"], kind)
    if not source.images:
        raise DataError(f"{source.name} (dataset.{split}_data_sources) has no images; expected at least one.")
    return source


def sources_with_classes(spec: DatasetSpec, split: str, kind: str = BOXES, with_masks: bool = False) -> list[Source]:
    """The sources of a split as `read_sources`, with classes decided over all splits of the spec."""
    sources = read_sources(spec, split, kind, with_masks)
    if needs_other_splits(sources):
        decide_classes(sources, _other_splits(spec, split))
    return sources


def _other_splits(spec: DatasetSpec, split: str) -> list[Source]:
    """The sources of the other splits, without duplicates; unreadable ones are reported when they are loaded."""
    read, sources = _entries(spec, split), []
    for other in ("train", "val", "test"):
        for entry in _entries(spec, other):
            if entry in read:
                continue
            read.append(entry)
            with contextlib.suppress(DataError):
                sources.append(_read(entry, other, spec.format))
    return sources


def _entries(spec: DatasetSpec, split: str) -> list[Mapping[str, Any]]:
    value = getattr(spec, f"{split}_data_sources")
    return [value] if isinstance(value, Mapping) else list(value or [])
