"""Which layers of a graph `quantize` converts, and to which number formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.precision.graph import Graph
from rtdetr_tool.formats.precision.modules import matches, module_path, unmatched
from rtdetr_tool.formats.precision.number_formats import FP8, INT8, NUMBER_FORMATS, NodeFormats, NumberFormat
from rtdetr_tool.formats.precision.quantize_nodes import Quantizable, quantizable
from rtdetr_tool.formats.precision.ranges import METHODS
from rtdetr_tool.spec import ExperimentSpec, LoadedSpec
from rtdetr_tool.spec.convert import changed_from_default
from rtdetr_tool.spec.quantize import LayerQuantizationSpec, QuantizeSpec, TensorQuantizationSpec

ALGORITHMS = {"minmax": "minmax", "max": "minmax", "entropy": "entropy"}
OBSERVERS = {"minmax": "minmax", "percentile": "percentile 99.99", "entropy": "entropy", "mse": "squared error"}
STATIC = "static_ptq"
NATIVE = ("", "native")  # data types of tensors that are not quantized


@dataclass
class LayerChoice:
    """The layers to quantize.

    Args:
        formats: node -> its number formats.
        requested: nodes that a pattern of `quantize.layers` names, which stay quantized at any cost.
        observers: activation -> how its range is chosen, where a layer sets it.
        applied: indices of the `quantize.layers` that decide a node.
        skipped: node that could be quantized -> why it is not.
    """

    formats: dict[str, NodeFormats] = field(default_factory=dict)
    requested: frozenset[str] = frozenset()
    observers: dict[str, str] = field(default_factory=dict)
    applied: set[int] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def needs_images(self) -> bool:
        return any(node.activations for node in self.formats.values())

    @property
    def name(self) -> str:
        """INT8, FP8, or both; `INT8 weights` if all activations stay in FP32."""
        used = {row for node in self.formats.values() for row in (node.weights, node.activations)}
        name = " and ".join(label for row, label in ((INT8, "INT8"), (FP8, "FP8")) if row in used)
        return name if self.needs_images else f"{name} weights"

    def describe(self, name: str) -> dict[str, str | None]:
        node = self.formats[name]
        activations = node.activations.name if node.activations else None
        return {"module": module_path(name), "weights": node.weights.name, "activations": activations}


def methods_of(loaded: LoadedSpec) -> Sequence[str]:
    """How the ranges of activations may be chosen; all ways are tried if `quantize.algorithm` is not set."""
    section = loaded.spec.quantize
    if (loaded.explicit.get("quantize") or {}).get("algorithm") is None:
        return tuple(METHODS)
    name = section.algorithm or "minmax"
    if name.startswith("awq"):
        raise UserError(
            f"quantize.algorithm: {name} is not supported, because it scales 4-bit weights of language models; "
            f"expected {', '.join(ALGORITHMS)} or rtn_dq"
        )
    if name == "rtn_dq" and section.mode == STATIC:
        raise UserError(
            "quantize.algorithm: rtn_dq only rounds weights, but quantize.mode=static_ptq also needs the ranges of "
            f"activations; expected {', '.join(ALGORITHMS)}, or quantize.mode=weight_only_ptq"
        )
    return (ALGORITHMS.get(name, "minmax"),)


def choose_layers(graph: Graph, section: QuantizeSpec) -> LayerChoice:
    """Apply `quantize.layers` and `quantize.skip_names` to the convolutions and linear layers of the graph.

    Raises:
        UserError: a pattern matches nothing, a number format is not supported, or nothing is left to quantize.
    """
    static, layers, skip = section.mode == STATIC, list(section.layers or ()), list(section.skip_names or ())
    formats = {f"quantize.layers[{index}]": _formats(layer, index, static) for index, layer in enumerate(layers)}
    candidates = quantizable(graph)
    _check_patterns([layer.module_name for layer in layers], "quantize.layers[].module_name", candidates)
    _check_patterns(skip, "quantize.skip_names", candidates)
    choice, requested = LayerChoice(), set()
    for name, target in candidates.items():
        pattern = next((pattern for pattern in skip if matches(pattern, target.node)), None)
        if pattern is not None:
            choice.skipped[name] = f"quantize.skip_names: {pattern}"
            continue
        if not layers:
            choice.formats[name] = NodeFormats(INT8, INT8 if static else None)
            continue
        matching = [index for index, layer in enumerate(layers) if matches(layer.module_name, target.node)]
        row = formats[f"quantize.layers[{matching[-1]}]"] if matching else None
        choice.applied.update(matching[-1:])
        if row is None:
            choice.skipped[name] = "quantize.layers"
            continue
        choice.formats[name], layer = row, layers[matching[-1]]
        if layer.module_name != "*":
            requested.add(name)
        if layer.activations is not None and layer.activations.observer_or_fake_quant:
            choice.observers[target.activation] = OBSERVERS[layer.activations.observer_or_fake_quant]
    if not choice.formats:
        raise UserError("quantize: no layer is left to quantize; change quantize.layers or quantize.skip_names")
    choice.requested = frozenset(requested)
    return choice


def notes_without_effect(spec: ExperimentSpec, choice: LayerChoice) -> Iterator[str]:
    """One line for each field that is set although it has no effect on this choice of layers."""
    section = spec.quantize
    if not choice.needs_images:
        static = section.mode == STATIC
        reason = "quantize.layers has no activations" if static else "quantize.mode is weight_only_ptq"
        if ALGORITHMS.get(section.algorithm or "minmax", "minmax") != "minmax":
            yield f"quantize.algorithm has no effect: {reason}"
        for name in ("quantize.calibration_images", "dataset.quant_calibration_data_sources"):
            if changed_from_default(name, spec):
                yield f"{name} has no effect: {reason}"
    for index, layer in enumerate(section.layers or ()):
        if index not in choice.applied:
            yield f"quantize.layers[{index}] has no effect: later layers or quantize.skip_names match the same modules"
        for kind, tensor in (("weights", layer.weights), ("activations", layer.activations)):
            if tensor is not None and tensor.dtype in NATIVE and tensor != TensorQuantizationSpec(tensor.dtype):
                yield f"quantize.layers[{index}].{kind} has no effect: its dtype is {tensor.dtype or 'not set'}"


def _check_patterns(patterns: Sequence[str], name: str, candidates: Mapping[str, Quantizable]) -> None:
    problems = unmatched(patterns, {node: target.node for node, target in candidates.items()})
    lines = [
        f"'{pattern}' matches no convolution or linear layer" + (f"; similar: {', '.join(near)}" if near else "")
        for pattern, near in problems.items()
    ]
    if lines:
        raise UserError(
            f"{name}: " + "\n  ".join(lines) + "\n  expected the path of a module, a class (Conv2d, Linear), or a "
            "pattern with * and ?"
        )


def _formats(layer: LayerQuantizationSpec, index: int, static: bool) -> NodeFormats | None:
    """The formats of a layer; None = not quantized."""
    name = f"quantize.layers[{index}]"
    weights = _number_format(layer.weights, f"{name}.weights", axis=0)
    activations = _number_format(layer.activations, f"{name}.activations", axis=None)
    if activations is not None and not static:
        raise UserError(
            f"{name}.activations.dtype: {activations.name} requires quantize.mode=static_ptq; with weight_only_ptq, "
            "only weights are quantized"
        )
    if weights is None:
        if activations is not None:
            raise UserError(f"{name}.weights: required with activations, but not set; expected {activations.name}")
        return None
    if activations is not None and activations is not weights:
        raise UserError(
            f"{name}: weights are {weights.name} and activations {activations.name}; expected the same for both, "
            "because no runtime multiplies two number formats"
        )
    return NodeFormats(weights, activations)


def _number_format(tensor: TensorQuantizationSpec | None, name: str, axis: int | None) -> NumberFormat | None:
    if tensor is None or tensor.dtype in NATIVE:
        return None
    if tensor.dtype not in NUMBER_FORMATS:
        raise UserError(
            f"{name}.dtype: {tensor.dtype} is not supported, because TensorRT and ONNX Runtime compute FP8 as "
            f"{FP8.name}; expected one of {', '.join(NUMBER_FORMATS)}, native"
        )
    if tensor.quant_axis not in (None, axis):
        expected = "null (one scale)" if axis is None else f"null or {axis} (output channels)"
        raise UserError(f"{name}.quant_axis: {tensor.quant_axis} is invalid; expected {expected}")
    observer = tensor.observer_or_fake_quant
    allowed = OBSERVERS if axis is None else {"minmax": "minmax"}
    if observer and observer not in allowed:
        raise UserError(f"{name}.observer_or_fake_quant: {observer} is invalid; expected one of {', '.join(allowed)}")
    if tensor.observer_or_fake_quant_kwargs:
        given = ", ".join(tensor.observer_or_fake_quant_kwargs)
        raise UserError(f"{name}.observer_or_fake_quant_kwargs: {given} is not supported; expected no arguments")
    return NUMBER_FORMATS[tensor.dtype]
