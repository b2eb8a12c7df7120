"""The precision audit: find the nodes of a graph that need FP32, by range, resolution and score.

The FP16 maximum is 65504, resolution drops below 6.1e-5, and there are no values between 0 and 6.0e-8.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

import numpy as np
import onnx

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.onnx.half_emulation import MOVING
from rtdetr_tool.formats.precision.audit_report import Audit, GroupCost, NodeAudit
from rtdetr_tool.formats.precision.cost import CostMeter
from rtdetr_tool.formats.precision.gates import GatedGraph
from rtdetr_tool.formats.precision.graph import HEAVY, Graph
from rtdetr_tool.formats.precision.magnitudes import LARGEST, SMALLEST_NORMAL, TensorRange
from rtdetr_tool.formats.precision.observe import Observer, open_session, rebatched
from rtdetr_tool.formats.precision.roles import find_roles
from rtdetr_tool.progress import track

logger = logging.getLogger(__name__)

MARGIN = 4.0  # headroom for images with larger values than the calibration images
COARSE = 2e-3  # relative error (L2) of a tensor in FP16; rounding alone gives at most 5e-4
IMAGES_FOR_COST = 8
TOLERATED_COST = 0.02
REGIONS = 12

# Nodes that turn a small number into a large one: an input that FP16 flushes to zero becomes infinite.
_SHARP = {"Log": 0, "Div": 1, "Reciprocal": 0, "Sqrt": 0}


def audit_precision(
    model: onnx.ModelProto, feeds: Iterable[np.ndarray], images_for_cost: int = IMAGES_FOR_COST
) -> Audit:
    """Run an FP32 graph on images [N, 3, H, W] float32 RGB 0..1 and check each node.

    All images give the ranges, one at a time; the first `images_for_cost` are kept to measure what groups of nodes
    cost in FP16.

    Raises:
        UserError: there are no images, or they do not fit the graph.
    """
    graph = Graph(model)
    first: list[np.ndarray] = []
    ranges, count = _ranges(graph, feeds, first, images_for_cost)
    if not count:
        raise UserError("The precision audit requires images; set gen_trt_engine.tensorrt.calibration")
    audit = Audit(judge(graph, ranges), count)
    _measure_costs(graph, audit, CostMeter(graph.model, first))
    return audit


def _ranges(
    graph: Graph, feeds: Iterable[np.ndarray], first: list[np.ndarray], num_first: int
) -> tuple[dict[str, TensorRange], int]:
    """Range of every float tensor, and the number of images; the first images are added to `first`."""
    made = [name for node in graph.nodes if node.op_type not in MOVING for name in node.output if graph.is_float(name)]
    observer = Observer(graph.model, made)
    ranges = {name: TensorRange() for name in (*graph.inputs, *made) if graph.is_float(name)}
    count = 0
    for image in rebatched(feeds, graph.model):
        if count < num_first:
            first.append(image)
        count += len(image)
        for name in graph.inputs:
            ranges[name].add(image)
        for name, value in observer.observe(image):
            ranges[name].add(value)
    return ranges, count


def judge(graph: Graph, ranges: dict[str, TensorRange] | None = None) -> dict[str, NodeAudit]:
    """A row for each node that could run in FP16, with the reasons against it, except those of scores."""
    ranges = dict(ranges or {})
    roles = find_roles(graph)
    for tensor in graph.initializers.values():
        if graph.is_float(tensor.name):
            values = graph.constant(tensor.name)
            assert values is not None  # an initializer is a constant
            ranges[tensor.name] = TensorRange()
            ranges[tensor.name].add(values)
    rows = {}
    for node in graph.nodes:
        inputs, outputs = graph.half_slots(node)
        read = [node.input[slot] for slot in inputs]
        made = [node.output[slot] for slot in outputs]
        if node.op_type in MOVING:
            _inherit(ranges, read, made)
        if not read and not made:
            continue
        row = NodeAudit(node.name, node.op_type, roles.get(node.name))
        _fill(row, [ranges[name] for name in (*read, *made) if name in ranges])
        row.reasons = list(_objections(graph, node, ranges, read, made))
        if row.role:
            row.reasons.append(f"role: {row.role}")
        rows[node.name] = row
    return rows


def _inherit(ranges: dict[str, TensorRange], read: list[str], made: list[str]) -> None:
    """Give the outputs of a node that only moves values the ranges of its inputs."""
    known = [ranges[name] for name in read if name in ranges]
    for name in made:
        if known and name not in ranges:
            ranges[name] = TensorRange()
            for source in known:
                ranges[name].merge(source)


def _fill(row: NodeAudit, seen: list[TensorRange]) -> None:
    if seen:
        row.max_abs = max(s.max_abs for s in seen)
        row.smallest = min(s.smallest for s in seen)
        row.smallest = None if row.smallest == float("inf") else row.smallest
        row.flushed_share = max(s.flushed_share for s in seen)
        row.half_error = max(s.half_error for s in seen)


def _objections(
    graph: Graph, node: onnx.NodeProto, ranges: dict[str, TensorRange], read: list[str], made: list[str]
) -> Iterable[str]:
    """Reasons against FP16 from the ranges of a node."""
    added = _added(node)
    for name in (*read, *made):
        seen = ranges.get(name)
        if seen is None:
            continue
        constant = name in graph.initializers
        limit = LARGEST if constant else LARGEST / MARGIN
        what = "constant" if constant else "input" if name in read else "output"
        if seen.max_abs > limit:
            yield f"overflow: {what} up to {seen.max_abs:.3g}, the FP16 maximum is 65504"
        moved = name in added if constant else node.op_type in MOVING
        if seen.half_error > COARSE and not moved:
            yield f"resolution: {what} loses {seen.half_error:.1%} in FP16"
    if node.op_type in _SHARP:
        seen = ranges.get(node.input[_SHARP[node.op_type]])
        if seen is not None and seen.smallest < SMALLEST_NORMAL:
            yield f"underflow: {node.op_type} of values down to {seen.smallest:.1e}, FP16 is exact from 6.1e-05"


def _added(node: onnx.NodeProto) -> list[str]:
    """Inputs that are summands: rounding of a constant only matters relative to the sum."""
    return list(node.input) if node.op_type in ("Add", "Sub", "Sum") else list(node.input[2:]) * (node.op_type in HEAVY)


def _measure_costs(graph: Graph, audit: Audit, meter: CostMeter) -> None:
    """Fill the costs; keep in FP32 what does not run in FP16, then the costliest regions until the rest is cheap."""
    kept = {row.name for row in audit.kept}
    groups = _kept_groups(audit)
    stretches = dict(regions(graph, set(audit.nodes) - kept))
    gated = GatedGraph(graph, groups | stretches)
    session = open_session(gated.model)
    cost, audit.failure_all_half = meter.attempt(session, gated.feed(*groups, *stretches))
    audit.cost_all_half = _finite(cost)
    for label, names in track((groups | stretches).items(), "Measuring FP16 by region", unit="regions"):
        cost, failure = meter.attempt(session, gated.feed(label))
        audit.groups.append(GroupCost(label, len(names), _finite(cost), label in groups, failure))

    def keep(group: GroupCost, reason: str) -> None:
        group.kept = True
        for name in stretches.pop(group.group):
            audit.nodes[name].reasons.append(reason)

    for group in [group for group in audit.groups if group.failure and not group.kept]:
        keep(group, f"does not run: {group.group} in FP16 stops at {group.failure}")
    cost, _ = meter.attempt(session, gated.feed(*stretches))
    dear = sorted((group for group in audit.groups if not group.kept), key=lambda group: -(group.cost or 0.0))
    for rank, group in enumerate(dear):
        if cost <= TOLERATED_COST or (rank >= len(dear) // 2 and cost < math.inf):
            break
        keep(group, f"cost: {group.group} alone moves detections by {group.cost:.1%}")
        cost, _ = meter.attempt(session, gated.feed(*stretches))
    audit.cost_kept = _finite(cost)


def _finite(cost: float) -> float | None:
    return cost if math.isfinite(cost) else None


def _kept_groups(audit: Audit) -> dict[str, set[str]]:
    """The nodes that stay in FP32 for reasons other than cost, by role."""
    groups: dict[str, set[str]] = {}
    for row in audit.kept:
        groups.setdefault(f"role: {row.role}" if row.role else "range", set()).add(row.name)
    return groups


def regions(graph: Graph, names: set[str]) -> list[tuple[str, set[str]]]:
    """The nodes in consecutive regions with about equally many heavy nodes, named after their first and last node."""
    ordered = [node for node in graph.nodes if node.name in names]
    heavy = sum(node.op_type in HEAVY for node in ordered)
    size, seen = max(1, -(-heavy // REGIONS)), 0
    stretches: dict[int, list[onnx.NodeProto]] = {}
    for node in ordered:
        stretches.setdefault(min(seen // size, REGIONS - 1), []).append(node)
        seen += node.op_type in HEAVY
    return [(f"{part[0].name} to {part[-1].name}", {node.name for node in part}) for part in stretches.values()]
