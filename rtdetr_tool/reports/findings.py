"""The report of `validate_data`: findings with their images, and statistics of the splits."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest

from rtdetr_tool.data.dataset import DetectionDataset
from rtdetr_tool.data.findings import ERROR, KINDS, LEVELS, Findings, Suspect
from rtdetr_tool.data.inspection import SplitCounts
from rtdetr_tool.data.pixels import RGB, PixelFormat
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.reports.dataset import dataset_sections
from rtdetr_tool.reports.images import labeled_image
from rtdetr_tool.reports.page import CaptionedImage, Gallery, Page, Section, Table, Text
from rtdetr_tool.visualize import Color

REPAIRED: Color = (255, 0, 0)  # color of a box as labeled that was clipped or dropped


def validation_page(
    datasets: Mapping[str, DetectionDataset],
    counts: Mapping[str, SplitCounts],
    findings: Findings,
    num_suspects: int,
    num_samples: int,
) -> Page:
    """The page of a validation.

    Args:
        num_suspects: how many of the images with findings are drawn, the most severe kinds first.
        num_samples: how many other images are drawn with their labels.
    """
    class_map = next(iter(datasets.values())).class_map if datasets else None
    pixels = next(iter(datasets.values())).pixels if datasets else RGB
    shots = [_drawn(suspect, class_map, pixels) for suspect in select_suspects(findings, num_suspects)]
    sections = [
        Section("Findings", [_table(findings) if any(findings) else Text("No problems found.")]),
        Section("Images with findings", [Gallery(shots)] if shots else []),
        *dataset_sections(datasets, counts, num_samples),
    ]
    levels = [finding.level for finding in findings]
    tiles = [
        ("usable", "no" if ERROR in levels else "yes"),
        *((f"{level}s", str(levels.count(level))) for level in LEVELS),
    ]
    tiles += [(f"{split} images", f"{count.images:,}") for split, count in counts.items()]
    if class_map is not None:
        tiles.append(("classes", str(len(class_map.entries))))
    return Page("Dataset validation", "", tiles, sections)


def select_suspects(findings: Findings, count: int) -> list[Suspect]:
    """At most `count` suspects: in turn one of each kind, the most severe kinds first."""
    by_kind: dict[str, list[Suspect]] = {kind: [] for kind in KINDS}
    for suspect in findings.suspects:
        by_kind[suspect.kind].append(suspect)
    rounds = zip_longest(*(by_kind[kind] for kind in sorted(by_kind, key=lambda k: LEVELS.index(KINDS[k][0]))))
    return [suspect for turn in rounds for suspect in turn if suspect is not None][:count]


def _table(findings: Findings) -> Table:
    rows = [[f.level, f.split, f"{f.count:,}", f.text, ", ".join(f.examples)] for f in findings]
    return Table(["", "split", "count", "finding", "examples"], rows, levels=[f.level for f in findings])


def _drawn(suspect: Suspect, class_map: ClassMap | None, pixels: PixelFormat) -> CaptionedImage:
    level, text = KINDS[suspect.kind]
    extra = [] if suspect.original is None else [(suspect.original, REPAIRED, "as labeled")]
    image = labeled_image(suspect.record, class_map, extra, pixels)
    return CaptionedImage(image, text, f"{suspect.split}: {suspect.where}", level)
