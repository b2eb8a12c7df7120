"""`rtdetr validate_data`: check the datasets of a spec before training on them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

from rich.table import Table

from rtdetr_tool.data.build import scoring_of
from rtdetr_tool.data.build_sources import pixel_format_of
from rtdetr_tool.data.dataset import DetectionDataset
from rtdetr_tool.data.findings import Findings
from rtdetr_tool.data.inspection import SplitCounts, check_contents
from rtdetr_tool.errors import DataError
from rtdetr_tool.files import write_atomically
from rtdetr_tool.json_output import command_output
from rtdetr_tool.log import console
from rtdetr_tool.reports.files import write_page
from rtdetr_tool.reports.findings import validation_page
from rtdetr_tool.spec import LoadedSpec
from rtdetr_tool.spec.required import results_folder
from rtdetr_tool.workflows.augmentation_preview import write_preview
from rtdetr_tool.workflows.validate_data import check_images, load_splits, report

logger = logging.getLogger(__name__)


def run(loaded: LoadedSpec) -> None:
    """Check the datasets, write and print the report; `DataError` at the end if training or scoring would fail."""
    spec, section = loaded.spec, loaded.spec.validate_data
    findings = Findings(section.num_pictures)
    epochs, pixels = spec.train.num_epochs, pixel_format_of(spec)
    datasets = load_splits(spec.dataset, findings, spec.model.predicts, pixels, epochs)
    counts = check_contents(datasets, findings, scoring_of(spec))
    check_images(spec, datasets, findings)

    folder = results_folder(section, "validate_data")
    command_output().results = content = report(datasets, counts, findings)
    write_atomically(folder / "report.json", json.dumps(content, indent=2) + "\n")
    page = write_page(validation_page(datasets, counts, findings, section.num_pictures, section.num_samples), folder)
    write_preview(datasets.get("train"), section.num_augmented, folder)
    print_report(datasets, counts, findings)
    logger.info("Wrote %s: findings, statistics and sample images", page)
    if findings.errors:
        lines = "\n".join(f"  - {finding.line()}" for finding in findings.errors)
        raise DataError(f"The datasets cannot be used as they are:\n{lines}")


def print_report(
    datasets: Mapping[str, DetectionDataset], counts: Mapping[str, SplitCounts], findings: Findings
) -> None:
    """Print sizes, classes and findings as tables, and log the findings."""
    sizes = Table("split", title="Datasets")
    for name in ("images", "without objects", "objects", "crowd regions"):
        sizes.add_column(name, justify="right")
    for split, count in counts.items():
        sizes.add_row(split, *map(str, (count.images, count.empty_images, count.objects, count.crowds)))
    console().print(sizes)
    if counts:
        classes = Table("class", title="Objects by class")
        for split in counts:
            classes.add_column(split, justify="right")
        class_map = next(iter(datasets.values())).class_map
        for entry in class_map.entries:
            classes.add_row(entry.name, *(str(count.by_class.get(entry.index, 0)) for count in counts.values()))
        console().print(classes)
    if not any(findings):
        logger.info("No problems found")
        return
    table = Table("", "split", title="Findings")
    table.add_column("count", justify="right")
    table.add_column("finding")
    for finding in findings:
        table.add_row(finding.level, finding.split, str(finding.count), finding.text)
        logger.debug("%s: %s", finding.level, finding.line())
    console().print(table)
