"""Sections about datasets: sizes, classes, boxes, and labeled sample images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rtdetr_tool.data.dataset import DetectionDataset
from rtdetr_tool.data.inspection import SplitCounts
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.data.statistics import Statistics, measure
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.reports import charts
from rtdetr_tool.reports.images import labeled_image
from rtdetr_tool.reports.page import Block, CaptionedImage, Gallery, Section, Table

_BARS = 80  # classes with a bar; a longer list stays a table


def dataset_sections(
    datasets: Mapping[str, DetectionDataset], counts: Mapping[str, SplitCounts], samples: int = 0
) -> list[Section]:
    """Statistics of the splits, and `samples` evenly spaced images of each with their labels."""
    if not datasets:
        return []
    statistics = {split: measure(dataset.records) for split, dataset in datasets.items()}
    class_map = next(iter(datasets.values())).class_map
    sections = [
        Section("Splits", [sizes_table(counts, statistics)]),
        Section("Classes", class_blocks(class_map, counts)),
        Section("Images and boxes", _distribution_charts(statistics)),
    ]
    if samples:
        images = [
            CaptionedImage(image, f"{split}: {len(record)} objects", record.path)
            for split, dataset in datasets.items()
            for record in spread(dataset.records, max(1, samples // len(datasets)))
            for image in (labeled_image(record, class_map, pixels=dataset.pixels),)
        ]
        sections.append(Section("Sample images", [Gallery(images)]))
    return sections


def spread(records: Sequence[ImageRecord], count: int) -> list[ImageRecord]:
    """`count` of the records at equal distances."""
    indices = np.unique(np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int))
    return [records[index] for index in indices.tolist()]


def sizes_table(counts: Mapping[str, SplitCounts], statistics: Mapping[str, Statistics]) -> Table:
    rows = []
    for split, count in counts.items():
        split_statistics = statistics[split]
        widths, heights = split_statistics.image_sizes[:, 0], split_statistics.image_sizes[:, 1]
        size = "-" if not len(widths) else f"{np.median(widths):.0f} × {np.median(heights):.0f}"
        per_image = split_statistics.objects_per_image
        rows.append(
            [
                split,
                f"{count.images:,}",
                f"{count.empty_images:,}",
                f"{count.objects:,}",
                f"{count.crowds:,}",
                f"{per_image.mean():.1f}" if len(per_image) else "-",
                f"{per_image.max()}" if len(per_image) else "-",
                size,
                *(f"{number:,}" for number in split_statistics.areas.values()),
            ]
        )
    areas = next(iter(statistics.values())).areas
    return Table(
        ["split", "images", "without objects", "objects", "crowd regions", "objects per image", "at most",
         "median size (px)", *areas],
        rows,
    )  # fmt: skip


def class_blocks(class_map: ClassMap, counts: Mapping[str, SplitCounts]) -> list[Block]:
    """Objects by class as a table and, unless there are too many classes, as a chart of shares."""
    entries = class_map.entries
    rows = [
        [entry.name, *(f"{count.by_class.get(entry.index, 0):,}" for count in counts.values())] for entry in entries
    ]
    blocks: list[Block] = [Table(["class", *counts], rows, caption="Objects by class")]
    if len(entries) <= _BARS:
        shares = {
            split: [count.by_class.get(entry.index, 0) / max(1, count.objects) for entry in entries]
            for split, count in counts.items()
        }
        names = [entry.name for entry in entries]
        blocks.insert(0, charts.bars("classes", "Share of the objects by class", shares, names, percent=True))
    return blocks


def _distribution_charts(statistics: Mapping[str, Statistics]) -> list[Block]:
    def of(name: str) -> dict[str, np.ndarray]:
        return {split: np.asarray(getattr(of_split, name), dtype=np.float64) for split, of_split in statistics.items()}

    widths = {split: of_split.image_sizes[:, 0] for split, of_split in statistics.items()}
    heights = {split: of_split.image_sizes[:, 1] for split, of_split in statistics.items()}
    longer = {split: np.maximum(widths[split], heights[split]) for split in statistics}
    main = next(iter(statistics))
    return [
        charts.histogram("box_sizes", "Box sizes", of("box_sizes"), "√(box area / image area)", log_x=True),
        charts.histogram("aspect_ratios", "Aspect ratios of boxes", of("aspect_ratios"), "width / height", log_x=True),
        charts.histogram("image_sizes", "Image sizes", longer, "longer side (px)"),
        charts.histogram("objects_per_image", "Objects per image", of("objects_per_image"), "objects", whole=True),
        charts.heat(
            "positions", f"Box centers ({main})", statistics[main].positions, "x (share of the width)",
            "y (share of the height)",
        ),
    ]  # fmt: skip
