"""The `evaluate` section: score a model on the test set."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_tool.spec.fields import INF, MISSING, field
from rtdetr_tool.spec.run_model import RunModelSpec


@dataclass(frozen=True)
class EvaluateSpec(RunModelSpec):
    """Score a model on the test set."""

    checkpoint: str = field(MISSING, "Model to evaluate: a checkpoint, an ONNX file or a TFLite file.", path="read")
    trt_engine: str | None = field(None, "TensorRT engine to evaluate instead of a checkpoint.", path="read")
    results_dir: str | None = field(
        None, "Folder of this command's results; null = <results_dir>/evaluate.", path="results"
    )
    input_width: int | None = field(None, "Input width; null = that of the checkpoint.", min=1, unit="pixels")
    input_height: int | None = field(None, "Input height; null = that of the checkpoint.", min=1, unit="pixels")
    conf_threshold: float = field(0.0, "Drop detections with a lower score before scoring.", min=0.0, max=1.0)
    max_dets: int = field(
        100,
        "Maximum number of detections per class and image in COCO's scores (maxDets), also in training. The default of"
        " COCO and TAO is 100; RF-DETR's package uses 500. A model returns at most model.num_select detections per "
        "image.",
        min=1,
        max=100_000,
        origin="ours",
    )
    keypoint_oks_sigmas: list[float] | None = field(
        None,
        "How much each keypoint may differ in the scores (OKS), relative to the size of the object, also in training; "
        "null = COCO's for 17 keypoints, 0.05 for any other number.",
        min=0.0,
        max=INF,
        origin="ours",
    )
    report: bool = field(
        True,
        "Write report.html: scores, curves, confusion matrix, calibration, error types, best and worst images.",
        origin="ours",
    )
