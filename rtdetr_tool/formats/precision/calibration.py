"""Ranges of quantized tensors: cached, or measured on images with the method that changes the detections least."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.formats.onnx.half_emulation import FLOAT, emulate_half
from rtdetr_tool.formats.precision.audit import regions
from rtdetr_tool.formats.precision.cache import Calibration, graph_hash, read_cache, write_cache
from rtdetr_tool.formats.precision.cost import CostMeter
from rtdetr_tool.formats.precision.graph import Graph
from rtdetr_tool.formats.precision.number_formats import NUMBER_FORMATS, NodeFormats
from rtdetr_tool.formats.precision.observe import open_session
from rtdetr_tool.formats.precision.quantize_nodes import place, quantizable, residual_inputs, scale_name, scale_of
from rtdetr_tool.formats.precision.ranges import METHODS, collect
from rtdetr_tool.progress import track

logger = logging.getLogger(__name__)

IMAGES_FOR_COST = 8
TOLERATED_COST = 0.05


@dataclass(frozen=True)
class Plan:
    """How to quantize the selected nodes.

    Args:
        half: the rest of the graph runs in FP16.
        formats: of nodes that are not INT8.
        requested: nodes that the user wants quantized at any cost.
        methods: ways to cut the tails of ranges, of which the one with the lowest cost is used.
        fixed: activation -> the method for it.
        remedy: the field that keeps layers in a higher precision.
    """

    half: bool = True
    formats: Mapping[str, NodeFormats] = field(default_factory=dict)
    requested: frozenset[str] = frozenset()
    methods: Sequence[str] = tuple(METHODS)
    fixed: Mapping[str, str] = field(default_factory=dict)
    remedy: str = "gen_trt_engine.tensorrt.layers_precision"


def calibrated(
    graph: Graph,
    model: onnx.ModelProto,
    feeds: Iterable[np.ndarray],
    nodes: set[str],
    cache_file: str | os.PathLike[str] | None,
    plan: Plan,
) -> tuple[Calibration, bool]:
    """Ranges from the cache, or measured (and stored in it); also returns whether the cache was used."""
    tensors = activations_of(graph)
    sha = graph_hash(model)
    known = read_cache(cache_file, sha, tensors) if cache_file else None
    if known is not None:
        return known, True
    first: list[np.ndarray] = []
    histograms, count = collect(graph.model, tensors, feeds, first, IMAGES_FOR_COST)
    meter = CostMeter(model, first)
    limits = {
        method: {name: METHODS[plan.fixed.get(name, method)](histogram) for name, histogram in histograms.items()}
        for method in plan.methods
    }
    costs, failures = _method_costs(graph, meter, nodes, limits, plan)
    if not costs:
        raise RtdetrError(
            f"the quantized graph does not run with the ranges of any method; it stops at "
            f"{next(iter(failures.values()))}. Keep layers in a higher precision ({plan.remedy})"
        )
    best = min(costs, key=costs.__getitem__)
    kept = _too_dear(graph, meter, nodes, limits[best], costs[best], plan)
    calibration = Calibration(sha, best, count, limits[best], costs, kept)
    if cache_file:
        write_cache(cache_file, calibration)
    return calibration, False


def _method_costs(
    graph: Graph, meter: CostMeter, nodes: set[str], limits: Mapping[str, Mapping[str, float]], plan: Plan
) -> tuple[dict[str, float], dict[str, str]]:
    """Cost of the ranges of each method, or the failure; one graph is used for all, with scales as inputs."""
    model = place(graph, nodes, next(iter(limits.values())), plan.half, plan.formats)
    made = {tensor.name for tensor in model.graph.initializer}
    scales = {
        (name, number_format): scale
        for name in activations_of(graph)
        for number_format in NUMBER_FORMATS.values()
        if (scale := scale_name(name, number_format)) in made
    }
    model.graph.input.extend(helper.make_tensor_value_info(scale, FLOAT, []) for scale in scales.values())
    session = open_session(model)
    costs, failures = {}, {}
    for method, ranges in track(limits.items(), "Comparing ranges", unit="methods"):
        values = {
            scale: scale_of(ranges[name], plan.half, number_format) for (name, number_format), scale in scales.items()
        }
        cost, failure = meter.attempt(session, values)
        if failure is None:
            costs[method] = cost
        else:
            failures[method] = failure
            logger.warning("The ranges of %s do not run; it stops at %s", method, failure)
    return costs, failures


def activations_of(graph: Graph) -> list[str]:
    """Every tensor that may get Q/DQ nodes."""
    candidates = quantizable(graph)
    names = [target.activation for target in candidates.values()]
    residual = residual_inputs(graph, candidates).items()
    return list(dict.fromkeys([*names, *(graph.by_name[name].input[slot] for name, slot in residual)]))


def _too_dear(
    graph: Graph,
    meter: CostMeter,
    nodes: Collection[str],
    limits: Mapping[str, float],
    cost: float,
    plan: Plan,
) -> dict[str, str]:
    """Nodes not to quantize, most expensive region of the graph first, until the cost is tolerable; at most half."""
    kept: dict[str, str] = {}

    def attempt(names: Collection[str]) -> tuple[float, str | None]:
        return meter.attempt(open_session(emulate_half(place(graph, names, limits, plan.half, plan.formats))))

    if cost <= TOLERATED_COST:
        return kept
    prices = []
    for label, names in track(list(regions(graph, set(nodes))), "Measuring INT8 by region", unit="regions"):
        names = set(names) - plan.requested
        if names:
            prices.append((*attempt(names), label, names))
    prices.sort(key=lambda row: -row[0])
    for price, failure, label, names in prices:
        if failure is None and (cost <= TOLERATED_COST or len(kept) + len(names) > len(nodes) / 2):
            break
        reason = f"cost: quantizing {label} alone moves detections by {price:.1%}"
        if failure is not None:
            reason = f"does not run: quantizing {label} stops at {failure}"
        kept |= dict.fromkeys(names, reason)
        cost, _ = attempt(set(nodes) - set(kept))
    return kept
