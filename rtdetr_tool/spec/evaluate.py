"""The `evaluate` section: score a model on the test set."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_tool.spec.fields import MISSING, field

ONNX_PROVIDERS = ("auto", "cpu", "cuda", "tensorrt")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class EvaluateSpec:
    """Score a model on the test set."""

    num_gpus: int = field(1, "Devices per node.", min=1)
    gpu_ids: list[int] = field([0], "Which GPUs; as many as num_gpus.", min=0)
    num_nodes: int = field(1, "Machines.", min=1)
    checkpoint: str = field(MISSING, "Model to evaluate: a checkpoint, an ONNX file or a TFLite file.", path="read")
    trt_engine: str | None = field(None, "TensorRT engine to evaluate instead of a checkpoint.", path="read")
    onnx_provider: str = field(
        "auto", "What runs an ONNX file; auto = CUDA where it can, else the CPU.", options=ONNX_PROVIDERS, origin="ours"
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
    results_dir: str | None = field(
        None, "Folder of this command's results; null = <results_dir>/evaluate.", path="results"
    )
    batch_size: int = field(-1, "Images per step; -1 = dataset.batch_size.", min=-1)
    input_width: int | None = field(None, "Input width; null = that of the checkpoint.", min=1, unit="pixels")
    input_height: int | None = field(None, "Input height; null = that of the checkpoint.", min=1, unit="pixels")
    conf_threshold: float = field(0.0, "Leave out detections with a lower score before scoring.", min=0.0, max=1.0)
    max_dets: int = field(
        100,
        "Detections of each class and image that COCO's scores count (maxDets), in training too. The standard, and "
        "TAO's, is 100; RF-DETR's package uses 500. A model returns at most model.num_select of an image.",
        min=1,
        max=100_000,
        origin="ours",
    )
    report: bool = field(
        True,
        "Write report.html: scores, curves, confusion matrix, calibration, error types, best and worst images.",
        origin="ours",
    )
    is_quantized: bool = field(
        False,
        "The checkpoint is the output of quantize.",
        unsupported="quantized checkpoints are not part of this version",
    )
