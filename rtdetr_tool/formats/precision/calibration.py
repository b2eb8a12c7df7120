"""INT8 ranges of a graph: from the cache, or measured on images, with the method that moves the detections least."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
from onnx import helper

from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.formats.onnx.half_emulation import FLOAT, emulate_half
from rtdetr_tool.formats.precision.audit import regions
from rtdetr_tool.formats.precision.cache import Calibration, graph_hash, read_cache, write_cache
from rtdetr_tool.formats.precision.cost import CostMeter
from rtdetr_tool.formats.precision.graph import Graph
from rtdetr_tool.formats.precision.observe import open_session
from rtdetr_tool.formats.precision.quantize_nodes import place, quantizable, residual_inputs, scale_name, scale_of
from rtdetr_tool.formats.precision.ranges import METHODS, collect
from rtdetr_tool.formats.precision.rules import LayerRules

logger = logging.getLogger(__name__)

PICTURES_FOR_COST = 8
TOLERATED_COST = 0.05


def calibrated(
    graph: Graph,
    model: onnx.ModelProto,
    feeds: Iterable[np.ndarray],
    chosen: set[str],
    rules: LayerRules,
    cache_file: str | os.PathLike[str] | None,
    half: bool,
) -> tuple[Calibration, bool]:
    """Ranges from the cache where there is one, else measured (and kept there); whether the cache was used."""
    tensors = _activations(graph)
    sha = graph_hash(model)
    known = read_cache(cache_file, sha, tensors) if cache_file else None
    if known is not None:
        return known, True
    first: list[np.ndarray] = []
    histograms, count = collect(graph.model, tensors, feeds, first, PICTURES_FOR_COST)
    meter = CostMeter(model, first)
    limits = {method: {name: cut(h) for name, h in histograms.items()} for method, cut in METHODS.items()}
    costs, failures = _method_costs(graph, meter, chosen, limits, half)
    if not costs:
        raise RtdetrError(
            f"the graph runs with INT8 ranges of no method; it stops at {next(iter(failures.values()))}. Keep layers "
            "in a higher precision (gen_trt_engine.tensorrt.layers_precision), or choose FP16"
        )
    best = min(costs, key=costs.__getitem__)
    kept = _too_dear(graph, meter, chosen, limits[best], costs[best], rules, half)
    calibration = Calibration(sha, best, count, limits[best], costs, kept)
    if cache_file:
        write_cache(cache_file, calibration)
    return calibration, False


def _method_costs(
    graph: Graph, meter: CostMeter, chosen: set[str], limits: Mapping[str, Mapping[str, float]], half: bool
) -> tuple[dict[str, float], dict[str, str]]:
    """What the ranges of each method cost, or what failed; one graph serves all, its scales are inputs."""
    model = place(graph, chosen, next(iter(limits.values())), half)
    scales = {name: scale_name(name) for name in _activations(graph)}
    made = {tensor.name for tensor in model.graph.initializer}
    scales = {name: scale for name, scale in scales.items() if scale in made}
    model.graph.input.extend(helper.make_tensor_value_info(scale, FLOAT, []) for scale in scales.values())
    session = open_session(model)
    costs, failures = {}, {}
    for method, found in limits.items():
        cost, failure = meter.attempt(session, {scale: scale_of(found[name], half) for name, scale in scales.items()})
        if failure is None:
            costs[method] = cost
        else:
            failures[method] = failure
            logger.warning("INT8 with the ranges of %s does not run; it stops at %s", method, failure)
    return costs, failures


def _activations(graph: Graph) -> list[str]:
    """Every tensor that may get Q/DQ, whatever nodes are chosen."""
    candidates = quantizable(graph)
    names = [target.activation for target in candidates.values()]
    residual = residual_inputs(graph, candidates).items()
    return list(dict.fromkeys([*names, *(graph.by_name[name].input[slot] for name, slot in residual)]))


def _too_dear(
    graph: Graph,
    meter: CostMeter,
    chosen: Collection[str],
    limits: Mapping[str, float],
    cost: float,
    rules: LayerRules,
    half: bool,
) -> dict[str, str]:
    """Nodes to leave out of INT8, dearest stretch of the graph first, until the cost is tolerable; at most half."""
    kept: dict[str, str] = {}

    def attempt(names: Collection[str]) -> tuple[float, str | None]:
        return meter.attempt(open_session(emulate_half(place(graph, names, limits, half))))

    if cost <= TOLERATED_COST:
        return kept
    prices = []
    for label, names in regions(graph, set(chosen)):
        names = {name for name in names if not _asked_for(graph, name, rules)}
        if names:
            prices.append((*attempt(names), label, names))
    prices.sort(key=lambda row: -row[0])
    for price, failure, label, names in prices:
        if failure is None and (cost <= TOLERATED_COST or len(kept) + len(names) > len(chosen) / 2):
            break
        reason = f"cost: INT8 from {label} alone moves detections by {price:.1%}"
        if failure is not None:
            reason = f"does not run: INT8 from {label} stops at {failure}"
        kept |= dict.fromkeys(names, reason)
        cost, _ = attempt(set(chosen) - set(kept))
    return kept


def _asked_for(graph: Graph, name: str, rules: LayerRules) -> bool:
    """Whether the user wants this node in INT8, whatever it costs."""
    rule = rules.match(name, graph.by_name[name].op_type)
    return rule is not None and rule.precision == "int8"
