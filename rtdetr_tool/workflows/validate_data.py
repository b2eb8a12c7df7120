"""Load every split of a spec, read its images and report problems for training."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from rtdetr_tool.catalog import BOXES
from rtdetr_tool.data.build import build_eval_dataset, build_train_dataset
from rtdetr_tool.data.dataset import DetectionDataset
from rtdetr_tool.data.file_check import FileCheck, read_files
from rtdetr_tool.data.findings import Findings
from rtdetr_tool.data.inspection import SplitCounts, check_boxes
from rtdetr_tool.data.pixels import RGB, PixelFormat
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.errors import DataError, MissingSplit
from rtdetr_tool.progress import track
from rtdetr_tool.spec import DatasetSpec, ExperimentSpec
from rtdetr_tool.spec.fields import is_blank
from rtdetr_tool.status import current_status

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


def load_splits(
    spec: DatasetSpec,
    findings: Findings,
    kind: str = BOXES,
    pixels: PixelFormat = RGB,
    num_epochs: int | None = None,
) -> dict[str, DetectionDataset]:
    """The datasets of the spec as training loads them; a dataset that cannot be loaded becomes a finding.

    If test and val are the same, only val is loaded. A dataset folder without a test split is not an error.
    """
    of_folder = {"dataset_dir": spec.dataset_dir, "split": "test"}
    datasets: dict[str, DetectionDataset] = {}
    for split in SPLITS:
        if is_blank(getattr(spec, f"{split}_data_sources")):
            continue
        if split == "test" and spec.test_data_sources == spec.val_data_sources:
            logger.info("Skipping the test data, which is the same as the validation data")
            continue
        try:
            if split == "train":
                datasets[split] = build_train_dataset(spec, kind=kind, num_epochs=num_epochs, pixels=pixels)
            else:
                known = datasets["train"].class_map if "train" in datasets else None
                datasets[split] = build_eval_dataset(spec, split, known, kind, pixels=pixels)
        except DataError as error:
            absent = isinstance(error, MissingSplit) and spec.test_data_sources == of_folder and split == "test"
            findings.add("no_test_split" if absent else "unusable", split, str(error))
    return datasets


def check_images(spec: ExperimentSpec, datasets: Mapping[str, DetectionDataset], findings: Findings) -> None:
    """Read all images of all splits and check their labels."""
    augmentation = spec.dataset.augmentation
    size = input_size(augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio)
    files = FileCheck(findings, replaced=("train",) if spec.dataset.on_bad_image == "skip" else ())
    for split, dataset in datasets.items():
        start, bad = time.monotonic(), files.bad
        read = read_files(dataset.records, spec.dataset.workers, dataset.pixels)
        facts = track(read, f"Reading {split}", len(dataset), "images")
        for record, fact in zip(dataset.records, facts, strict=True):
            check_boxes(split, record, size, findings)
            files.add(split, record, fact)
        if files.bad - bad == len(dataset):
            findings.add("unusable", split, "none of its images can be read")
        elif split in files.replaced and dataset.max_bad is not None and files.bad - bad > dataset.max_bad:
            findings.add("too_many_replaced", split, f"expected at most {dataset.max_bad}", files.bad - bad)
        seconds = time.monotonic() - start
        current_status().running(f"Read {len(dataset)} images of {split} in {seconds:.0f} s.")


def report(
    datasets: Mapping[str, DetectionDataset], counts: Mapping[str, SplitCounts], findings: Findings
) -> dict[str, Any]:
    """The complete result as plain data."""
    splits = {
        split: {
            "images": split_counts.images,
            "images_without_objects": split_counts.empty_images,
            "objects": split_counts.objects,
            "crowd_regions": split_counts.crowds,
            "objects_by_class": {
                datasets[split].class_map.name_of(index): count for index, count in split_counts.by_class.items()
            },
        }
        for split, split_counts in counts.items()
    }
    return {
        "usable": not findings.errors,
        "splits": splits,
        "findings": [split_counts.to_dict() for split_counts in findings],
    }
