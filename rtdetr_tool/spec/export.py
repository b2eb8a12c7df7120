"""The `export` section: write a checkpoint in a format of `formats.table`."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_tool.catalog import LAYOUTS, PREDICTS
from rtdetr_tool.formats.table import FORMATS, exported_formats, titles
from rtdetr_tool.spec.fields import MISSING, field

MIN_OPSET, MAX_OPSET = 12, 26  # of the exporter and the converter behind it


@dataclass(frozen=True)
class LowerPrecisionSpec:
    """Limit on what a precision below FP32 changes."""

    max_cost: float = field(
        0.1,
        "Below FP32: maximum change of the detections compared with PyTorch; 0 = none, 1 = nothing in common.",
        min=0.0,
        max=1.0,
        origin="ours",
    )


@dataclass(frozen=True)
class CalibrationSpec:
    """Images that INT8 ranges are measured on."""

    calibration: str | None = field(
        None,
        "INT8: a folder of images, or an array file (.npy) of images [N, channels, height, width] or channels last, "
        "uint8 or float 0..1; null = images of the dataset.",
        origin="ours",
        path="read",
    )
    calibration_images: int = field(100, "INT8: maximum number of calibration images.", min=1, origin="ours")


@dataclass(frozen=True)
class TfliteSpec(LowerPrecisionSpec, CalibrationSpec):
    """Precision of a TFLite file."""

    data_type: str = field(
        "FP32",
        "FP16: weights of half the size, computed in FP32. INT8: convolutions and linear layers before the decoder "
        "compute with 8 bits, those of the decoder have 8-bit weights.",
        options=FORMATS["tflite"].precisions,
        origin="ours",
    )


@dataclass(frozen=True)
class OpenvinoSpec(LowerPrecisionSpec, CalibrationSpec):
    """Precision of an OpenVINO file."""

    data_type: str = field(
        "FP32",
        "FP16: weights of half the size, computed in FP32 on a CPU. BF16: computed in bfloat16, which is fast on CPUs "
        "with AMX or AVX-512 BF16. INT8: convolutions and linear layers compute with 8 bits.",
        options=FORMATS["openvino"].precisions,
        origin="ours",
    )


@dataclass(frozen=True)
class ExecutorchSpec(LowerPrecisionSpec, CalibrationSpec):
    """Precision of an ExecuTorch program."""

    data_type: str = field(
        "FP32",
        "INT8: convolutions and linear layers before the decoder compute with 8 bits.",
        options=FORMATS["executorch"].precisions,
        origin="ours",
    )


@dataclass(frozen=True)
class CoremlSpec(LowerPrecisionSpec):
    """Precision of a Core ML package."""

    data_type: str = field(
        "FP32",
        "FP16: weights and computation in FP16, which Apple's Neural Engine requires.",
        options=FORMATS["coreml"].precisions,
        origin="ours",
    )


@dataclass(frozen=True)
class MnnSpec(LowerPrecisionSpec):
    """Precision of an MNN file."""

    data_type: str = field(
        "FP32",
        "FP16, INT8: weights with 16 or 8 bits; computed in FP32.",
        options=FORMATS["mnn"].precisions,
        origin="ours",
    )


def _static_batch() -> str:
    """`1 for TFLite, which does not support dynamic sizes`"""
    rows = [row for row in exported_formats() if not row.dynamic_batch]
    return f"1 for {titles(rows)}, which {'does' if len(rows) == 1 else 'do'} not support dynamic sizes"


def _extras() -> str:
    """`tflite needs the extra `tflite``, for every format that needs one."""
    return ", ".join(f"{row.name} needs the extra `{row.extra}`" for row in exported_formats() if row.extra)


def _layouts() -> str:
    """`tao: inputs (RGB 0..1) -> pred_logits, pred_boxes`, for every layout."""
    parts = []
    for name, layout in LAYOUTS.items():
        pixels = "normalized by ImageNet's mean and deviation" if layout.normalised else "RGB 0..1"
        outputs = ", ".join(output for field, output in layout.outputs.items() if field not in PREDICTS[1:])
        parts.append(f"{name}: {layout.input} ({pixels}) -> {outputs}")
    return "; ".join(parts)


@dataclass(frozen=True)
class ExportSpec:
    """Export a checkpoint to a format for deployment."""

    results_dir: str | None = field(
        None, "Folder of this command's results; null = <results_dir>/export.", path="results"
    )
    gpu_id: int = field(0, "Device to export on.", min=0)
    checkpoint: str = field(MISSING, "Weights to export.", path="read")
    onnx_file: str = field(MISSING, "File to write; its suffix is replaced by that of the format.", path="written")
    on_cpu: bool = field(False, "Export on the CPU.")
    input_channel: int = field(
        3, "Accepted for old specs; must be model.num_channels of the checkpoint, or 3, the default.", min=1
    )
    input_width: int | None = field(None, "Input width; null = that of the checkpoint.", min=32, unit="pixels")
    input_height: int | None = field(None, "Input height; null = that of the checkpoint.", min=32, unit="pixels")
    opset_version: int = field(17, "ONNX operator set.", min=MIN_OPSET, max=MAX_OPSET)
    batch_size: int = field(-1, f"Batch size of the graph; -1 = dynamic, or {_static_batch()}.", min=-1)
    verbose: bool = field(False, "Log what the exporter does.")
    format: str = field("onnx", f"File format; {_extras()}.", options=tuple(row.name for row in exported_formats()))
    serialize_nvdsinfer: bool = field(False, "Also write labels.txt and nvdsinfer_config.yaml for DeepStream.")
    is_quantized: bool = field(
        False,
        "The checkpoint is the output of quantize.",
        unsupported="quantize writes an ONNX file itself, from a checkpoint or an exported ONNX file",
    )
    overwrite: bool = field(False, "Replace onnx_file if it exists.", origin="ours")
    include_postprocess: bool = field(
        False,
        "Add top-k to the graph, with the outputs boxes (xyxy, pixels of the input), scores and labels in addition to "
        "the raw ones.",
        origin="ours",
    )
    tolerance: float = field(
        1e-3,
        "Maximum difference from PyTorch, of a score and of a relative box coordinate, that export accepts.",
        above=0.0,
        origin="ours",
    )
    notes: str | None = field(None, "Any text; stored in the file's metadata.", origin="ours")
    layout: str = field(
        "tao",
        f"Names of inputs and outputs, and pixels: {_layouts()}. Masks and "
        "keypoints are outputs of detectors that predict them.",
        options=tuple(LAYOUTS),
        origin="ours",
    )
    backbone_only: bool = field(
        False,
        "Export without the decoder; the outputs are its input feature maps features, features_1, ...",
        origin="ours",
    )
    tflite: TfliteSpec = field(TfliteSpec, "With format tflite.")
    openvino: OpenvinoSpec = field(OpenvinoSpec, "With format openvino.")
    coreml: CoremlSpec = field(CoremlSpec, "With format coreml.")
    executorch: ExecutorchSpec = field(ExecutorchSpec, "With format executorch.")
    mnn: MnnSpec = field(MnnSpec, "With format mnn.")
