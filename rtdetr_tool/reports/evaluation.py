"""Sections about an evaluation: scores, curves, confusion, calibration, error types, best and worst images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rtdetr_tool.catalog import BOXES
from rtdetr_tool.data.pixels import RGB, PixelFormat
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.metrics.analysis import ERROR_TYPES, Analysis, ImageScore
from rtdetr_tool.metrics.coco import CocoEvaluator
from rtdetr_tool.metrics.result import score_rows, score_text
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.reports import charts
from rtdetr_tool.reports.charts import Series
from rtdetr_tool.reports.images import comparison_image
from rtdetr_tool.reports.page import Block, CaptionedImage, Gallery, Section, Table, Text

_SHOWN_THRESHOLD = 0.3  # of detections in sample images if there is no best threshold


def score_tiles(analysis: Analysis) -> list[tuple[str, str]]:
    """The most important scores; a score without ground truth is `-`."""
    result, best = analysis.result, analysis.result.best
    tiles = [("mAP", score_text(result.map)), ("mAP50", score_text(result.map50))]
    for kind, stats in result.by_kind.items():
        if kind != BOXES:
            what = kind.removesuffix("s")
            tiles += [(f"{what} mAP", score_text(stats["AP"])), (f"{what} mAP50", score_text(stats["AP50"]))]
    at = "" if best.threshold is None else f" at score {best.threshold:.2f}"
    tiles += [(f"F1{at}", score_text(best.f1)), ("precision", score_text(best.precision))]
    return [*tiles, ("recall", score_text(best.recall)), ("images", f"{result.images:,}")]


def evaluation_sections(
    analysis: Analysis,
    evaluator: CocoEvaluator,
    records: Sequence[ImageRecord],
    class_map: ClassMap,
    samples: int = 6,
    pixels: PixelFormat = RGB,
) -> list[Section]:
    """Everything about an evaluation; `samples` is the number of best and of worst images."""
    return [
        Section("Scores", [scores_table(analysis), classes_table(analysis)]),
        Section("Curves", curve_charts(analysis)),
        Section("Errors", error_blocks(analysis)),
        *image_sections(analysis, evaluator, records, class_map, samples, pixels),
    ]


def scores_table(analysis: Analysis) -> Table:
    result = analysis.result
    kinds = result.by_kind
    return Table(["metric", *kinds], score_rows(kinds), caption=f"COCO metrics (maxDets {result.max_dets})")


def classes_table(analysis: Analysis) -> Table:
    best = analysis.result.best.threshold
    names = [row.name for row in analysis.result.per_class]
    rows = []
    for row in analysis.result.per_class:
        at_best = ["-"] * 3
        curves = analysis.at_threshold.get(row.name) if names.count(row.name) == 1 else None
        if curves is not None and best is not None:
            column = int(np.abs(analysis.thresholds - best).argmin())
            best_index = int(curves[0].argmax())
            at_best = [f"{curves[1, column]:.3f}", f"{curves[2, column]:.3f}", f"{analysis.thresholds[best_index]:.2f}"]
        scores = map(score_text, (row.ap, row.ap50, row.ar))
        rows.append([row.name, str(row.category_id), f"{row.objects:,}", *scores, *at_best])
    shown = "-" if best is None else f"{best:.2f}"
    return Table(
        ["class", "id", "objects", "AP", "AP50", "AR", "precision", "recall", "best threshold"],
        rows,
        caption=f"By class; precision and recall at score {shown}, the best threshold over all classes",
    )


def curve_charts(analysis: Analysis) -> list[Block]:
    """Precision-recall curves of the means and the classes, and F1, precision and recall by score threshold."""
    if not analysis.precision:
        return [Text("There are no objects to score, so there are no curves.")]
    recall, thresholds = analysis.recall, analysis.thresholds
    by_ap = sorted(analysis.precision.items(), key=lambda item: -float(item[1].mean()))
    by_f1 = sorted(analysis.at_threshold.items(), key=lambda item: -float(item[1][0].max()))
    mean = analysis.mean_at_threshold
    assert mean is not None, "classes with objects have curves"
    limits = (0.0, 1.03)
    means = [Series(name, recall, curve) for name, curve in analysis.mean_precision.items()]
    classes = [Series(name, recall, curve) for name, curve in by_ap]
    points = [Series(name, thresholds, mean[row]) for row, name in enumerate(("F1", "precision", "recall"))]
    return [
        charts.lines("precision_recall", "Precision-recall, mean over classes", means, "recall", "precision",
                     y_limits=limits),
        charts.lines("precision_recall_by_class", "Precision-recall by class, IoU 0.50", classes, "recall",
                     "precision", y_limits=limits),
        charts.lines("f1", "F1, precision and recall, mean over classes", points, "score threshold", y_limits=limits),
        charts.lines("f1_by_class", "F1 by class", [Series(name, thresholds, curve[0]) for name, curve in by_f1],
                     "score threshold", "F1", y_limits=limits),
    ]  # fmt: skip


def error_blocks(analysis: Analysis) -> list[Block]:
    blocks: list[Block] = [
        charts.confusion("confusion_matrix", analysis.confusion),
        charts.error_types("error_types", analysis.errors, ERROR_TYPES),
        charts.reliability("calibration", analysis.calibration),
    ]
    pairs = most_confused(analysis)
    if pairs:
        blocks.append(Table(["true class", "predicted class", "count"], pairs, caption="Most frequent confusions"))
    return blocks


def most_confused(analysis: Analysis, count: int = 10) -> list[list[str]]:
    """The largest off-diagonal cells among the classes, as rows of true class, predicted class and count."""
    names, matrix = analysis.confusion.names, analysis.confusion.matrix[:-1, :-1].copy()
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:count]
    cells = [divmod(int(index), max(1, len(names))) for index in order]
    return [[names[row], names[column], f"{matrix[row, column]}"] for row, column in cells if matrix[row, column]]


def image_sections(
    analysis: Analysis,
    evaluator: CocoEvaluator,
    records: Sequence[ImageRecord],
    class_map: ClassMap,
    samples: int,
    pixels: PixelFormat = RGB,
) -> list[Section]:
    """The images with the most errors and those with the fewest, labels next to detections."""
    known = {record.image_id: record for record in records}
    worst = [image for image in analysis.images if image.f1 < 1][:samples]
    shown = {image.image_id for image in worst}
    best = [image for image in reversed(analysis.images) if image.image_id not in shown and image.correct][:samples]
    threshold = analysis.result.best.threshold
    threshold = _SHOWN_THRESHOLD if threshold is None else threshold
    note = Text(f"Labels on the left, detections with a score of at least {threshold:.2f} on the right.")
    index_of = {entry.category_id: entry.index for entry in class_map.entries}
    sections = []
    for title, images in (("Worst images", worst), ("Best images", best)):
        shots = [
            CaptionedImage(
                comparison_image(
                    known[image.image_id],
                    class_map,
                    evaluator.detections_of(image.image_id, threshold),
                    index_of,
                    pixels,
                ),
                _summary(image),
                known[image.image_id].path,
            )
            for image in images
            if image.image_id in known
        ]
        sections.append(Section(title, [note, Gallery(shots, wide=True)] if shots else []))
    return sections


def _summary(image: ImageScore) -> str:
    return f"F1 {image.f1:.2f}: {image.correct} correct, {image.wrong} wrong, {image.missed} missed"
