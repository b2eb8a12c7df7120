"""The `inference` section: detect objects in images and videos."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_tool.spec.fields import MISSING, field
from rtdetr_tool.spec.run_model import ClassThresholdsSpec, RunModelSpec

TRACKERS = ("none", "bytetrack")


@dataclass(frozen=True)
class InferenceSpec(RunModelSpec, ClassThresholdsSpec):
    """Detect objects in images and videos."""

    checkpoint: str = field(MISSING, "Model to use: a checkpoint, an ONNX file or a TFLite file.", path="read")
    trt_engine: str | None = field(None, "TensorRT engine to use instead of a checkpoint.", path="read")
    results_dir: str | None = field(
        None, "Folder of this command's results; null = <results_dir>/inference.", path="results"
    )
    color_map: dict[str, str] | None = field(
        None, "Class name to box color (name or #rrggbb); other classes get a default color."
    )
    conf_threshold: float = field(0.5, "Minimum score of detections that are drawn and written.", min=0.0, max=1.0)
    is_internal: bool = field(False, "Write one output folder per image sequence, and draw boxes without text.")
    input_width: int | None = field(None, "Input width; null = that of the checkpoint.", min=32, unit="pixels")
    input_height: int | None = field(None, "Input height; null = that of the checkpoint.", min=32, unit="pixels")
    outline_width: int = field(3, "Width of the box outline.", min=1, unit="pixels")
    tracker: str = field(
        "none",
        "Follow objects over the frames of a video and number them: none or bytetrack (requires the extra `tracking`).",
        options=TRACKERS,
        origin="ours",
    )
    stream_attempts: int = field(
        5,
        "How often in a row a lost stream or camera is opened again before inference ends; 0 = never.",
        min=0,
        max=100_000,
        origin="ours",
    )
