"""The `quantize` section, which is checked although the command is not implemented."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rtdetr_tool.spec.fields import MISSING, field


@dataclass(frozen=True)
class TensorQuantizationSpec:
    """Quantization of one kind of tensor: weights or activations."""

    dtype: str = field("", "Number format.", options=("", "int8", "fp8_e4m3fn", "fp8_e5m2", "native"))
    observer_or_fake_quant: str = field("", "Name of the observer that collects the value range.")
    quant_axis: int | None = field(None, "Axis with a separate scale per index; null = one scale per tensor.")
    observer_or_fake_quant_kwargs: dict[str, Any] | None = field({}, "Additional arguments of the observer.")


@dataclass(frozen=True)
class LayerQuantizationSpec:
    """Quantization of the modules that match a pattern."""

    module_name: str = field(MISSING, "Pattern on the module's path or class name.")
    weights: TensorQuantizationSpec | None = field(None, "Quantization of the weights; null = none.")
    activations: TensorQuantizationSpec | None = field(None, "Quantization of the activations; null = none.")


@dataclass(frozen=True)
class QuantizeSpec:
    """Quantize a checkpoint after training."""

    backend: str | None = field(
        "torchao", "Quantization library.", options=("modelopt.pytorch", "torchao", "modelopt.onnx")
    )
    mode: str | None = field(
        "weight_only_ptq",
        "Quantization mode; static_ptq requires calibration images.",
        options=("static_ptq", "weight_only_ptq"),
    )
    algorithm: str | None = field(
        "minmax",
        "Calibration algorithm.",
        options=("minmax", "max", "entropy", "awq_clip", "awq_lite", "awq_full", "rtn_dq"),
    )
    layers: list[LayerQuantizationSpec] | None = field([], "Modules to quantize, and their settings.")
    skip_names: list[str] | None = field([], "Modules to skip, by pattern.")
    model_path: str | None = field("", "Checkpoint to quantize.", path="read")
    results_dir: str | None = field(
        "", "Folder of this command's results; empty = <results_dir>/quantize.", path="results"
    )
    backend_kwargs: dict[str, Any] | None = field({}, "Additional arguments of the library.")
    device: str = field("cuda", "Device to quantize on: cuda, cpu, cuda:1.")
