"""The fields that `evaluate` and `inference` share: devices, runtime and batches."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_tool.catalog import ONNX_PROVIDERS
from rtdetr_tool.spec.fields import field
from rtdetr_tool.spec.tiles import TilesSpec
from rtdetr_tool.spec.train import PRECISIONS


@dataclass(frozen=True)
class RunModelSpec:
    """Run a model over images."""

    num_gpus: int = field(1, "Devices per node.", min=1)
    gpu_ids: list[int] = field([0], "Indices of the GPUs; as many as num_gpus.", min=0)
    num_nodes: int = field(1, "Number of machines.", min=1)
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
    batch_size: int = field(-1, "Images per step; -1 = dataset.batch_size.", min=-1)
    tiles: TilesSpec = field(TilesSpec, "Sliced inference for large images.")
    is_quantized: bool = field(
        False,
        "Require that the checkpoint is an output of quantize. Quantized files also run without it.",
    )
