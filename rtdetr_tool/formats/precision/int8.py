"""INT8 graphs: Q/DQ nodes around convolutions and linear layers, the rest in FP16 as the audit allows.

Ranges come from histograms over calibration images. The method of clipping their tails (maximum, percentiles, entropy,
squared error) is the one with the lowest cost on some of the images, and regions that cost too much are excluded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import numpy as np
import onnx

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.precision.audit import judge
from rtdetr_tool.formats.precision.audit_report import Audit
from rtdetr_tool.formats.precision.calibration import Plan, calibrated
from rtdetr_tool.formats.precision.casting import half_nodes, write_half
from rtdetr_tool.formats.precision.graph import Graph, at_opset
from rtdetr_tool.formats.precision.number_formats import INT8
from rtdetr_tool.formats.precision.quantize_nodes import place, quantizable
from rtdetr_tool.formats.precision.result import KeptNode, PrecisionGraph, apply_rules, kept_nodes
from rtdetr_tool.formats.precision.rules import LayerRules

OPSET_OF_HALF_SCALES = 19  # Q/DQ from and to FP16


def to_int8(
    model: onnx.ModelProto,
    feeds: Iterable[np.ndarray] = (),
    rules: LayerRules | None = None,
    cache_file: str | os.PathLike[str] | None = None,
    audit: Audit | None = None,
    half: bool = True,
) -> PrecisionGraph:
    """The graph with Q/DQ nodes; other nodes run in FP16 where the audit allows it (`half`), else in FP32.

    `feeds` are images [N, 3, H, W] float32 RGB 0..1; they are not read if `cache_file` exists and fits the graph.
    INT8 requires operator set 13, with FP16 19; an older graph is converted, which `notes` records.

    Raises:
        UserError: no images, rules without a match, a cache of another graph, or a graph that cannot be converted.
    """
    needed, what = (OPSET_OF_HALF_SCALES, "INT8 with FP16") if half else (INT8.opset, "INT8 per channel")
    graph, notes = at_opset(model, needed, what)
    rules = rules or LayerRules()
    rows = judge(graph) if audit is None else audit.nodes
    reasons, risks = apply_rules(graph, rows, rules)
    nodes, spared = _choose(graph, rules, reasons)
    requested = {name for name in nodes if _requested(rules, graph, name)}
    plan = Plan(half, requested=frozenset(requested))
    calibration, reused = calibrated(graph, model, feeds, nodes, cache_file, plan)
    spared |= {name: why for name, why in calibration.kept.items() if name in nodes}
    nodes -= set(spared)
    quantized = Graph(place(graph, nodes, calibration.ranges, half))
    halves = half_nodes(quantized, reasons) if half else set()
    written = write_half(quantized, halves)
    kept = kept_nodes(graph, rows, halves, reasons) if half else []
    kept += [
        KeptNode(name, graph.by_name[name].op_type, "fp16" if name in halves else "fp32", why)
        for name, why in spared.items()
        if name in halves or not half
    ]
    account = {"method": calibration.method, "pictures": calibration.pictures, "costs": calibration.costs}
    account |= {"reused_cache": reused}
    return PrecisionGraph(
        written.model, kept, len(halves & set(rows) - nodes), written.casts, len(nodes), notes + risks, account
    )


def _requested(rules: LayerRules, graph: Graph, name: str) -> bool:
    """Whether the user requires this node in INT8 at any cost."""
    rule = rules.match(name, graph.by_name[name].op_type)
    return rule is not None and rule.precision == "int8"


def _choose(graph: Graph, rules: LayerRules, reasons: Mapping[str, str]) -> tuple[set[str], dict[str, str]]:
    """The nodes to quantize, and the reasons for those that are excluded."""
    nodes, spared = set(), {}
    for name, target in quantizable(graph).items():
        rule = rules.match(name, target.node.op_type)
        if rule is not None and rule.precision == "fp16":
            spared[name] = f"layers_precision: {rule}"
        elif name in reasons:
            spared[name] = reasons[name]
        else:
            nodes.add(name)
    for rule in rules.rules:
        matching = [n for n in graph.nodes if rule.precision == "int8" and rules.match(n.name, n.op_type) is rule]
        if matching and not nodes & {node.name for node in matching}:
            raise UserError(
                f"gen_trt_engine.tensorrt.layers_precision: '{rule}' matches no layer that can run in INT8; "
                "expected convolutions or products with a constant matrix"
            )
    if not nodes:
        raise UserError("INT8: this graph has no convolution or linear layer with constant weights to quantize")
    return nodes, spared
