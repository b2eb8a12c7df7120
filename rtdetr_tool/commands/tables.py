"""The tables that commands print: scores by class, precisions of an engine and reasons for keeping nodes."""

from __future__ import annotations

from rich.table import Table

from rtdetr_tool.formats.precision import KeptNode, PrecisionGraph
from rtdetr_tool.log import console
from rtdetr_tool.metrics.result import CocoResult, score_rows, score_text
from rtdetr_tool.workflows.engine_precision import Variant
from rtdetr_tool.workflows.engine_scores import maps_of

SHOWN_REASONS = 12  # rows of the table of nodes that stay in a higher precision


def print_result(result: CocoResult) -> None:
    """Print COCO's metrics and the score of each class; `-` is an undefined score."""
    numbers = Table("metric", title=f"COCO metrics (maxDets {result.max_dets})")
    for kind in result.by_kind:
        numbers.add_column(kind, justify="right")
    for scores in score_rows(result.by_kind):  # as rows, because twelve columns do not fit a terminal
        numbers.add_row(*scores)
    numbers.add_section()
    best = result.best
    for name, value in (("F1", best.f1), ("precision", best.precision), ("recall", best.recall)):
        numbers.add_row(name if best.threshold is None else f"{name} at {best.threshold:.2f}", score_text(value))
    console().print(numbers)
    classes = Table(title="By class")
    for name in ("class", "id", "objects", "AP", "AP50", "AR"):
        classes.add_column(name, justify="left" if name == "class" else "right")
    for row in result.per_class:
        classes.add_row(row.name, str(row.category_id), str(row.objects), *map(score_text, (row.ap, row.ap50, row.ar)))
    console().print(classes)


def show_kept(precision: str, graph: PrecisionGraph) -> None:
    """Print the number of nodes in a higher precision and the reasons; precision.json has the complete list."""
    reasons: dict[str, list[KeptNode]] = {}
    for node in graph.kept:
        reasons.setdefault(f"{node.precision}: {kind_of(node.reason)}", []).append(node)
    counts = [(graph.quantized, "in 8 bits"), (graph.converted, "in FP16"), (len(graph.kept), "kept higher")]
    title = ", ".join(f"{count} nodes {where}" for count, where in counts if count)
    table = Table("precision: reason", title=f"{precision}: {title}")
    table.add_column("nodes", justify="right")
    table.add_column("largest value", justify="right")
    table.add_column("example")
    for reason, nodes in sorted(reasons.items(), key=lambda pair: -len(pair[1]))[:SHOWN_REASONS]:
        values = [node.max_abs for node in nodes if node.max_abs is not None]
        table.add_row(reason, str(len(nodes)), f"{max(values):.3g}" if values else "-", nodes[0].name)
    console().print(table)


def kind_of(reason: str) -> str:
    """A reason without its numbers: `role: softmax` unchanged, `overflow: output up to 1e+05` as `overflow`."""
    first = reason.split(";")[0]
    return first if first.startswith(("role", "layers_precision", "between")) else first.split(":")[0]


def _points_lost(before: float | None, after: float | None) -> str:
    return "-" if before is None or after is None else f"{100 * (before - after):.2f}"


def show_scores(variants: list[Variant]) -> None:
    """Print the mAP of each precision and the points lost compared with the first, if they were scored."""
    scored = [(variant.precision, variant.scores) for variant in variants if variant.scores is not None]
    if not scored:
        return
    table = Table("precision", title="Score in ONNX Runtime on dataset.val_data_sources")
    first = maps_of(scored[0][1])
    for column in (*(part for name in first for part in (name, "points lost")), "mAP50", "MB"):
        table.add_column(column, justify="right")
    for precision, scores in scored:
        maps = maps_of(scores)
        cells = [cell for name in first for cell in (score_text(maps[name]), _points_lost(first[name], maps[name]))]
        table.add_row(precision, *cells, score_text(scores["mAP50"]), f"{scores['bytes'] / 1e6:.1f}")
    console().print(table)
