"""The `inference` section: detect objects in folders of images."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_tool.spec.evaluate import ONNX_PROVIDERS, PRECISIONS
from rtdetr_tool.spec.fields import MISSING, field


@dataclass(frozen=True)
class InferenceSpec:
    """Detect objects in folders of images."""

    num_gpus: int = field(1, "Devices per node.", min=1)
    gpu_ids: list[int] = field([0], "Which GPUs; as many as num_gpus.", min=0)
    num_nodes: int = field(1, "Machines.", min=1)
    checkpoint: str = field(MISSING, "Model to use: a checkpoint, an ONNX file or a TFLite file.", path="read")
    trt_engine: str | None = field(None, "TensorRT engine to use instead of a checkpoint.", path="read")
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
        None, "Folder of this command's results; null = <results_dir>/inference.", path="results"
    )
    batch_size: int = field(-1, "Images per step; -1 = dataset.batch_size.", min=-1)
    color_map: dict[str, str] | None = field(
        None, "Class name to box color (name or #rrggbb); classes left out get a color of their own."
    )
    conf_threshold: float = field(0.5, "Smallest score that is drawn and written.", min=0.0, max=1.0)
    class_thresholds: dict[str, float] | None = field(
        None,
        "Smallest score of single classes, by class name; other classes use thresholds_from or conf_threshold.",
        origin="ours",
    )
    thresholds_from: str | None = field(
        None,
        "The results.json of an evaluation: each class uses the threshold at which its F1 was highest.",
        path="read",
        origin="ours",
    )
    is_internal: bool = field(False, "One output folder per image sequence, boxes drawn without text.")
    input_width: int | None = field(None, "Input width; null = that of the checkpoint.", min=32, unit="pixels")
    input_height: int | None = field(None, "Input height; null = that of the checkpoint.", min=32, unit="pixels")
    outline_width: int = field(3, "Width of the box outline.", min=1, unit="pixels")
    is_quantized: bool = field(
        False,
        "The checkpoint is the output of quantize.",
        unsupported="quantized checkpoints are not part of this version",
    )
