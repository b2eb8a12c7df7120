"""`rtdetr validate_data`: what training on the data sets of a spec would run into, found out beforehand."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import track
from rich.table import Table

from rtdetr_tool.commands.contact_sheet import contact_sheet
from rtdetr_tool.data.build import build_eval_dataset, build_train_dataset, scoring_of
from rtdetr_tool.data.dataset import DetectionDataset
from rtdetr_tool.data.findings import Findings
from rtdetr_tool.data.inspection import FileCheck, SplitCounts, check_boxes, check_contents, read_files
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.errors import DataError, MissingSplit
from rtdetr_tool.files import write_atomically
from rtdetr_tool.log import console
from rtdetr_tool.spec import DatasetSpec, ExperimentSpec, LoadedSpec
from rtdetr_tool.spec.fields import is_blank
from rtdetr_tool.status import current_status

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


def run(loaded: LoadedSpec) -> None:
    """Check everything, write and print it; a `DataError` at the end where training or scoring would have stopped."""
    spec, section = loaded.spec, loaded.spec.validate_data
    findings = Findings(section.num_pictures)
    masks = spec.model.predicts_masks
    datasets = load_splits(spec.dataset, findings, masks)
    counts = check_contents(datasets, findings, scoring_of(spec))
    check_images(spec, datasets, findings)

    folder = Path(section.results_dir)
    write_atomically(folder / "report.json", json.dumps(report(datasets, counts, findings), indent=2) + "\n")
    classes = next(iter(datasets.values())).class_map if datasets else None
    write_atomically(folder / "report.html", contact_sheet(findings, classes, section.num_pictures))
    print_report(datasets, counts, findings)
    logger.info("The report is in %s; what to look at is drawn in report.html.", folder)
    if findings.errors:
        lines = "\n".join(f"  - {found.line()}" for found in findings.errors)
        raise DataError(f"The data sets cannot be used as they are:\n{lines}")


def load_splits(spec: DatasetSpec, findings: Findings, masks: bool = False) -> dict[str, DetectionDataset]:
    """The data sets that the spec names, as training loads them; what cannot be loaded becomes a finding.

    Where test is the same as val, as it often is, only val is loaded. A folder that stands for all splits and has no
    test split is as good to train on as another.
    """
    of_folder = {"dataset_dir": spec.dataset_dir, "split": "test"}
    datasets: dict[str, DetectionDataset] = {}
    for split in SPLITS:
        if is_blank(getattr(spec, f"{split}_data_sources")):
            continue
        if split == "test" and spec.test_data_sources == spec.val_data_sources:
            logger.info("The test data is the validation data and is not checked twice.")
            continue
        try:
            if split == "train":
                datasets[split] = build_train_dataset(spec, masks=masks)
            else:
                known = datasets["train"].class_map if "train" in datasets else None
                datasets[split] = build_eval_dataset(spec, split, known, masks)
        except DataError as error:
            absent = isinstance(error, MissingSplit) and spec.test_data_sources == of_folder and split == "test"
            findings.add("no_test_split" if absent else "unusable", split, str(error))
    return datasets


def check_images(spec: ExperimentSpec, datasets: Mapping[str, DetectionDataset], findings: Findings) -> None:
    """Read every image of every split, and look at its labels."""
    augmentation = spec.dataset.augmentation
    size = input_size(augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio)
    files = FileCheck(findings, replaced=("train",) if spec.dataset.on_bad_image == "skip" else ())
    for split, dataset in datasets.items():
        start, bad = time.monotonic(), files.bad
        facts = track(
            read_files(dataset.records, spec.dataset.workers), f"Reading {split}", len(dataset), console=console()
        )
        for record, fact in zip(dataset.records, facts, strict=True):
            check_boxes(split, record, size, findings)
            files.look(split, record, fact)
        if files.bad - bad == len(dataset):
            findings.add("unusable", split, "not one of its images can be read")
        elif split in files.replaced and files.bad - bad > dataset.max_bad:
            findings.add("too_many_replaced", split, f"{dataset.max_bad} are allowed", files.bad - bad)
        seconds = time.monotonic() - start
        current_status().running(f"Read {len(dataset)} images of {split} in {seconds:.0f} s.")


def report(
    datasets: Mapping[str, DetectionDataset], counts: Mapping[str, SplitCounts], findings: Findings
) -> dict[str, Any]:
    """The whole result as plain data."""
    splits = {
        split: {
            "images": found.images,
            "images_without_objects": found.empty_images,
            "objects": found.objects,
            "crowd_regions": found.crowds,
            "objects_by_class": {
                datasets[split].class_map.name_of(index): count for index, count in found.by_class.items()
            },
        }
        for split, found in counts.items()
    }
    return {"usable": not findings.errors, "splits": splits, "findings": [found.to_dict() for found in findings]}


def print_report(
    datasets: Mapping[str, DetectionDataset], counts: Mapping[str, SplitCounts], findings: Findings
) -> None:
    """Sizes, classes and findings as tables on the console; the findings in the log as well."""
    sizes = Table("split", title="Data sets")
    for name in ("images", "without objects", "objects", "crowd regions"):
        sizes.add_column(name, justify="right")
    for split, found in counts.items():
        sizes.add_row(split, *map(str, (found.images, found.empty_images, found.objects, found.crowds)))
    console().print(sizes)
    if counts:
        classes = Table("class", title="Objects by class")
        for split in counts:
            classes.add_column(split, justify="right")
        class_map = next(iter(datasets.values())).class_map
        for entry in class_map.entries:
            classes.add_row(entry.name, *(str(found.by_class.get(entry.index, 0)) for found in counts.values()))
        console().print(classes)
    table = Table("", "split", title="Findings" if any(findings) else "Nothing was found that is wrong")
    table.add_column("count", justify="right")
    table.add_column("what")
    for found in findings:
        table.add_row(found.level, found.split, str(found.count), found.text)
        logger.debug("%s: %s", found.level, found.line())
    console().print(table)
