"""FP16 graphs: all nodes in FP16 except those kept in FP32 by the audit or the user."""

from __future__ import annotations

import onnx

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.precision.audit import TOLERATED_COST, judge
from rtdetr_tool.formats.precision.audit_report import Audit
from rtdetr_tool.formats.precision.casting import half_nodes, write_half
from rtdetr_tool.formats.precision.graph import Graph
from rtdetr_tool.formats.precision.result import PrecisionGraph, apply_rules, kept_nodes
from rtdetr_tool.formats.precision.rules import LayerRules


def to_mixed_fp16(
    model: onnx.ModelProto, audit: Audit | None = None, rules: LayerRules | None = None
) -> PrecisionGraph:
    """The graph with FP16 nodes, FP32 nodes and casts between them; float32 inputs and outputs, as before.

    Without an audit, only roles and constants decide: overflow of activations is not detected.

    Raises:
        UserError: rules match no node, or request INT8.
    """
    rules = rules or LayerRules()
    eight = [str(rule) for rule in rules.rules if rule.precision == "int8"]
    if eight:
        raise UserError(
            f"gen_trt_engine.tensorrt.layers_precision: {', '.join(eight)} requires INT8 ranges; "
            "set gen_trt_engine.tensorrt.data_type to INT8 and provide calibration images"
        )
    graph = Graph(model)
    rows = judge(graph) if audit is None else audit.nodes
    reasons, notes = apply_rules(graph, rows, rules)
    half = half_nodes(graph, reasons)
    written = write_half(graph, half)
    if audit is not None and audit.cost_kept is not None and audit.cost_kept > TOLERATED_COST:
        notes.append(f"FP16 still changes the detections on calibration images by {audit.cost_kept:.1%}")
    return PrecisionGraph(
        written.model, kept_nodes(graph, rows, half, reasons), len(half & set(rows)), written.casts, notes=notes
    )
