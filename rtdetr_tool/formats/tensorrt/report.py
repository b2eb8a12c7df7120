"""Report the layers of an engine, as plain data and as a few lines for the console."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rtdetr_tool.formats.tensorrt.library import LoadedLibrary, Messages, made

# The library's names of data types -> those of ONNX and PyTorch; integers for shapes do not count as a precision.
PRECISIONS = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8", "FP4": "float4", "INT8": "int8",
    "INT4": "int4",
}  # fmt: skip
OTHER_TYPES = {"INT32": "int32", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8"}
PRODUCTS = ("CONVOLUTION", "MATRIX_MULTIPLY")
SHOWN_TYPES = 8


def tensors(network: Any) -> dict[str, list[dict[str, Any]]]:
    """Name, shape (-1: dynamic) and type of inputs and outputs."""

    def describe(tensor: Any) -> dict[str, Any]:
        return {"name": tensor.name, "shape": list(tensor.shape), "type": type_name(tensor.dtype)}

    return {
        "inputs": [describe(network.get_input(index)) for index in range(network.num_inputs)],
        "outputs": [describe(network.get_output(index)) for index in range(network.num_outputs)],
    }


def type_name(kind: Any) -> str:
    name: str = kind.name
    return (PRECISIONS | OTHER_TYPES).get(name, name.lower())


def precisions(network: Any) -> dict[str, int]:
    """Number of layers of the network by data type.

    A product or convolution of dequantized values counts as quantized, because that is how it runs. Constants,
    quantization layers and layers on integers (shapes, indices) are skipped.
    """
    layers = [layer for layer in _layers(network) if layer.num_outputs and layer.type.name != "CONSTANT"]
    stored = {
        layer.get_output(0).name: layer.get_input(0).dtype.name for layer in layers if layer.type.name == "DEQUANTIZE"
    }
    counts: Counter[str] = Counter()
    for layer in layers:
        kind = layer.get_output(0).dtype.name
        if layer.type.name in PRODUCTS and layer.get_input(0).name in stored:
            kind = stored[layer.get_input(0).name]
        if kind in PRECISIONS and layer.type.name not in ("QUANTIZE", "DEQUANTIZE"):
            counts[PRECISIONS[kind]] += 1
    return dict(counts.most_common())


def layers_of_network(network: Any) -> dict[str, Any]:
    """Layers as parsed, before fusion: all that is known without the GPU that the engine is for."""
    types = Counter(layer.type.name.lower() for layer in _layers(network))
    return _layers_report(types, "network")


def layers_of_engine(loaded: LoadedLibrary, plan: bytes, messages: Messages) -> dict[str, Any]:
    """Layers of the built engine, which is loaded to get them; this also tests that it loads."""
    runtime = loaded.module.Runtime(loaded.logger)
    engine = made(runtime.deserialize_cuda_engine(plan), "loading the engine that was just built", messages)
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(loaded.module.LayerInformationFormat.JSON)
    layers = json.loads(text or "{}").get("Layers") or []
    types = Counter(
        str(layer.get("LayerType", "layer")).lower() if isinstance(layer, Mapping) else "layer" for layer in layers
    )
    return _layers_report(types, "engine")


def _layers_report(types: Counter[str], source: str) -> dict[str, Any]:
    return {"count": types.total(), "source": source, "by_type": dict(types.most_common())}


def _layers(network: Any) -> list[Any]:
    return [network.get_layer(index) for index in range(network.num_layers)]


def summary(report: Mapping[str, Any]) -> str:
    """A few lines about an engine's report, for the console."""
    layers, by_type = report["layers"], report["layers"]["by_type"]
    shown = [f"{name} {count}" for name, count in list(by_type.items())[:SHOWN_TYPES]]
    rest = layers["count"] - sum(list(by_type.values())[:SHOWN_TYPES])
    shown += [f"others {rest}"] if rest else []
    precision = ", ".join(f"{name} {count}" for name, count in report["precision"].items())
    profile = "; ".join(
        f"{name} {_batches(shapes)} x {' x '.join(map(str, shapes['opt'][1:]))}"
        for name, shapes in report["profile"].items()
    )
    source = "in the engine" if layers["source"] == "engine" else "in the network, before fusing"
    return "\n".join(
        [
            f"{report['backend']} {report['version']} for {', '.join(report['compute_capabilities'])}: "
            f"{report['bytes'] / 1e6:.1f} MB in {report['seconds']:.1f} s",
            f"input {profile}",
            f"{layers['count']} layers {source}: {', '.join(shown)}",
            f"layers by precision: {precision}",
        ]
    )


def _batches(shapes: Mapping[str, list[int]]) -> str:
    low, opt, high = (shapes[kind][0] for kind in ("min", "opt", "max"))
    return str(low) if low == high else f"{low}..{high} (best {opt})"
