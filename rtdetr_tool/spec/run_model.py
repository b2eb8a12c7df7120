"""Fields that the sections of several commands share: device, runtime, input size and thresholds of a model."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_tool.catalog import ONNX_PROVIDERS
from rtdetr_tool.spec.fields import field
from rtdetr_tool.spec.tiles import TilesSpec
from rtdetr_tool.spec.train import PRECISIONS


@dataclass(frozen=True)
class RuntimeSpec:
    """How a model runs."""

    onnx_provider: str = field(
        "auto",
        "Execution provider for ONNX files; auto = CUDA if available, otherwise the CPU.",
        options=("auto", *ONNX_PROVIDERS),
        origin="ours",
    )
    precision: str = field(
        "fp32",
        "Precision of a checkpoint's convolutions and matrix products; fp16 needs a GPU. Graphs and engines have their "
        "own.",
        options=PRECISIONS,
        origin="ours",
    )
    compile: bool = field(
        False,
        "Compile a checkpoint's network with torch.compile (on a GPU as a CUDA graph): slow to start, then faster.",
        origin="ours",
    )


@dataclass(frozen=True)
class RunModelSpec(RuntimeSpec):
    """Run a model over images."""

    num_gpus: int = field(1, "Devices per node.", min=1)
    gpu_ids: list[int] = field([0], "Indices of the GPUs; as many as num_gpus.", min=0)
    num_nodes: int = field(1, "Number of machines.", min=1)
    batch_size: int = field(-1, "Images per step; -1 = dataset.batch_size.", min=-1)
    tiles: TilesSpec = field(TilesSpec, "Sliced inference for large images.")
    is_quantized: bool = field(
        False,
        "Require that the checkpoint is an output of quantize. Quantized files also run without it.",
    )


@dataclass(frozen=True)
class OneDeviceSpec:
    """The device and the input size of a command that TAO does not have."""

    gpu_id: int = field(0, "GPU to use if there is one.", min=0, origin="ours")
    on_cpu: bool = field(False, "Use the CPU even if there is a GPU.", origin="ours")
    input_width: int | None = field(
        None, "Input width; null = that of the checkpoint.", min=32, unit="pixels", origin="ours"
    )
    input_height: int | None = field(
        None, "Input height; null = that of the checkpoint.", min=32, unit="pixels", origin="ours"
    )


@dataclass(frozen=True)
class ClassThresholdsSpec:
    """Minimum scores by class."""

    class_thresholds: dict[str, float] | None = field(
        None,
        "Minimum score of individual classes, by class name; other classes use thresholds_from or conf_threshold.",
        origin="ours",
    )
    thresholds_from: str | None = field(
        None,
        "The results.json of an evaluation: each class uses the threshold at which its F1 was highest.",
        path="read",
        origin="ours",
    )
