"""The `quantize` section: quantize a trained detector to INT8 or FP8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rtdetr_tool.spec.fields import MISSING, field

OBSERVERS = ("", "minmax", "percentile", "entropy", "mse")
OWN_IMPLEMENTATION = "this tool has one implementation for all libraries"


@dataclass(frozen=True)
class TensorQuantizationSpec:
    """Quantization of one kind of tensor: weights or activations."""

    dtype: str = field("", "Number format.", options=("", "int8", "fp8_e4m3fn", "fp8_e5m2", "native"))
    observer_or_fake_quant: str = field(
        "",
        "How the range of an activation is chosen from calibration images: minmax, percentile (99.99 %), entropy or "
        'mse; weights use minmax. "" = quantize.algorithm.',
    )
    quant_axis: int | None = field(
        None, "Axis with a separate scale per index; null = the output channels of weights, one scale for activations."
    )
    observer_or_fake_quant_kwargs: dict[str, Any] | None = field(
        {}, "Additional arguments of the observer; expected to be empty, because these observers have none."
    )


@dataclass(frozen=True)
class LayerQuantizationSpec:
    """Quantization of the modules that match a pattern."""

    module_name: str = field(
        MISSING,
        "Pattern (*, ?) on the module's path or class name (Conv2d, Linear), or on the name of a node in the graph.",
    )
    weights: TensorQuantizationSpec | None = field(None, "Quantization of the weights; null = none.")
    activations: TensorQuantizationSpec | None = field(None, "Quantization of the activations; null = none.")


@dataclass(frozen=True)
class QuantizeSpec:
    """Quantize a detector after training."""

    backend: str | None = field(
        "torchao",
        "Quantization library, as TAO names it.",
        options=("modelopt.pytorch", "torchao", "modelopt.onnx"),
        unused=OWN_IMPLEMENTATION,
    )
    mode: str | None = field(
        "weight_only_ptq",
        "weight_only_ptq: 8-bit weights, computed in FP32. static_ptq: 8-bit weights and activations; requires "
        "calibration images.",
        options=("static_ptq", "weight_only_ptq"),
    )
    algorithm: str | None = field(
        "minmax",
        "How the ranges of activations are chosen: minmax or max (the largest value), entropy; rtn_dq rounds weights "
        "to nearest, as every mode does. If it is not set, the method that changes the detections least.",
        options=("minmax", "max", "entropy", "awq_clip", "awq_lite", "awq_full", "rtn_dq"),
    )
    layers: list[LayerQuantizationSpec] | None = field(
        [],
        "Modules to quantize, and their settings; of several that match, the last one applies. Empty = all "
        "convolutions and linear layers, in INT8.",
    )
    skip_names: list[str] | None = field([], "Modules to skip, by pattern; takes precedence over layers.")
    model_path: str | None = field("", "Checkpoint or ONNX file to quantize.", path="read")
    results_dir: str | None = field(
        "", "Folder of this command's results; empty = <results_dir>/quantize.", path="results"
    )
    backend_kwargs: dict[str, Any] | None = field({}, "Additional arguments of the library.", unused=OWN_IMPLEMENTATION)
    device: str = field(
        "cuda",
        "Device to quantize on: cuda, cpu, cuda:1.",
        unused="ranges are measured in ONNX Runtime on the CPU",
    )
    calibration_images: int = field(
        100, "Maximum number of calibration images; they are chosen with a fixed seed.", min=1, origin="ours"
    )
    score_images: int = field(
        500,
        "Images of val_data_sources on which FP32 and the quantized file are scored; -1 = all, 0 = none.",
        min=-1,
        origin="ours",
    )
    max_score_drop: float = field(
        0.01,
        "Maximum loss of mAP (0..1) compared with FP32 on dataset.val_data_sources; the command fails if it is "
        "exceeded.",
        min=0.0,
        max=1.0,
        origin="ours",
    )
