"""Post-training quantization of a graph: Q/DQ nodes in INT8 or FP8 where requested, the rest in FP32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import onnx

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.precision.cache import Calibration, graph_hash
from rtdetr_tool.formats.precision.calibration import Plan, calibrated
from rtdetr_tool.formats.precision.graph import at_opset
from rtdetr_tool.formats.precision.number_formats import NodeFormats
from rtdetr_tool.formats.precision.quantize_nodes import place
from rtdetr_tool.formats.precision.result import KeptNode, PrecisionGraph


def to_quantized(
    model: onnx.ModelProto, formats: Mapping[str, NodeFormats], feeds: Iterable[np.ndarray], plan: Plan
) -> PrecisionGraph:
    """The graph with Q/DQ nodes around the nodes that have `formats`; `feeds` are read if one of them has activations.

    Args:
        feeds: images [N, 3, H, W] float32 as the graph takes them.
        plan: its formats are replaced by `formats`.

    Raises:
        UserError: no images although activations are quantized, or the graph cannot be raised to the operator set.
    """
    if not formats:
        raise UserError(
            "no layer is left to quantize; expected at least one convolution or linear layer with constant weights"
        )
    used = {row for node in formats.values() for row in (node.weights, node.activations) if row is not None}
    what = " and ".join(sorted(row.name.split("_")[0].upper() for row in used))
    graph, notes = at_opset(model, max(row.opset for row in used), f"{what} per channel")
    plan = replace(plan, half=False, formats=formats)
    nodes = set(formats)
    if any(node.activations for node in formats.values()):
        calibration, _ = calibrated(graph, model, feeds, nodes, None, plan)
    else:
        calibration = Calibration(graph_hash(model), "weights only", 0, {})
    kept = [KeptNode(name, graph.by_name[name].op_type, "fp32", why) for name, why in calibration.kept.items()]
    nodes -= set(calibration.kept)
    written = place(graph, nodes, calibration.ranges, False, formats)
    account = {"method": calibration.method, "images": calibration.pictures, "costs": calibration.costs}
    return PrecisionGraph(written, kept, 0, 0, len(nodes), notes, account)
