"""The `gen_trt_engine` section: build a TensorRT engine from an ONNX file."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_tool.spec.fields import MISSING, field

ENGINE_BACKENDS = ("auto", "tensorrt", "tensorrt_rtx", "none")


@dataclass(frozen=True)
class CalibrationSpec:
    """Images for INT8 calibration."""

    cal_image_dir: list[str] = field(MISSING, "INT8: folders of calibration images.", path="read")
    cal_cache_file: str = field(MISSING, "INT8: calibration cache file; reused if it exists.", path="written")
    cal_batch_size: int = field(1, "Images per calibration batch.", min=1)
    cal_batches: int = field(1, "Calibration batches.", min=1)


@dataclass(frozen=True)
class TensorRTSpec:
    """Engine settings."""

    workspace_size: int = field(1024, "Memory that TensorRT may use during the build.", min=0, unit="MB")
    min_batch_size: int = field(1, "Minimum batch size of the profile.", min=1)
    opt_batch_size: int = field(1, "Batch size that the engine is optimized for.", min=1)
    max_batch_size: int = field(4, "Maximum batch size of the profile.", min=1)
    layers_precision: list[str] | None = field(
        [], "Precision of individual layers, each `layer:precision`; * = all others."
    )
    data_type: str = field("FP32", "Precision of the engine.", options=("FP32", "FP16", "INT8"))
    calibration: CalibrationSpec = field(CalibrationSpec, "INT8 calibration.")


@dataclass(frozen=True)
class GenTrtEngineSpec:
    """Build a TensorRT engine from ONNX."""

    results_dir: str | None = field(
        None, "Folder of this command's results; null = <results_dir>/gen_trt_engine.", path="results"
    )
    gpu_id: int = field(0, "Device to build on.", min=0)
    onnx_file: str = field(MISSING, "ONNX file to read.", path="read")
    trt_engine: str | None = field(
        MISSING, "Engine file to write; null = named after onnx_file, in results_dir.", path="written"
    )
    timing_cache: str | None = field(None, "Timing cache file, which is read and updated.", path="written")
    batch_size: int = field(-1, "Batch size of the engine; -1 = that of the ONNX file.", min=-1)
    verbose: bool = field(False, "Log what TensorRT does.")
    tensorrt: TensorRTSpec = field(TensorRTSpec, "Engine settings.")
    backend: str = field(
        "auto",
        "Library that builds the engine: TensorRT, or TensorRT-RTX, which does not require a GPU; none = only write "
        "the ONNX graph in the requested precision and its report.",
        options=ENGINE_BACKENDS,
        origin="ours",
    )
    compute_capability: list[str] = field(
        [], "TensorRT-RTX: GPUs to build for, such as SM89; empty = the GPU of this machine.", origin="ours"
    )
    score_images: int = field(
        500, "Images of val_data_sources on which each precision is scored; -1 = all, 0 = none.", min=-1, origin="ours"
    )
    max_score_drop: float = field(
        0.01,
        "Maximum loss of mAP (0..1) compared with FP32 on dataset.val_data_sources; the command fails if it is "
        "exceeded.",
        min=0.0,
        max=1.0,
        origin="ours",
    )
    input_channel: int | None = field(
        None, "Accepted for old specs; read from the ONNX file.", origin="seed", unused="it is read from the ONNX file"
    )
    input_width: int | None = field(
        None, "Accepted for old specs; read from the ONNX file.", origin="seed", unused="it is read from the ONNX file"
    )
    input_height: int | None = field(
        None, "Accepted for old specs; read from the ONNX file.", origin="seed", unused="it is read from the ONNX file"
    )
