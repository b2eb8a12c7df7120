"""The sections of the commands other than train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rtdetr_tool.catalog import LAYOUTS
from rtdetr_tool.spec.fields import MISSING, field
from rtdetr_tool.spec.model import ModelSpec

ENGINE_BACKENDS = ("auto", "tensorrt", "tensorrt_rtx", "none")
ONNX_PROVIDERS = ("auto", "cpu", "cuda", "tensorrt")
MIN_OPSET, MAX_OPSET = 12, 26  # what the exporter and the converter behind it give


@dataclass(frozen=True)
class EvaluateSpec:
    """Score a model on the test set."""

    num_gpus: int = field(1, "Devices per node.", min=1)
    gpu_ids: list[int] = field([0], "Which GPUs; as many as num_gpus.", min=0)
    num_nodes: int = field(1, "Machines.", min=1)
    checkpoint: str = field(MISSING, "Model to evaluate: a checkpoint, an ONNX file or a TFLite file.")
    trt_engine: str | None = field(None, "TensorRT engine to evaluate instead of a checkpoint.")
    onnx_provider: str = field(
        "auto", "What runs an ONNX file; auto = CUDA where it can, else the CPU.", options=ONNX_PROVIDERS, origin="ours"
    )
    results_dir: str | None = field(None, "Folder of this command's results; null = <results_dir>/evaluate.")
    batch_size: int = field(-1, "Images per step; -1 = dataset.batch_size.", min=-1)
    input_width: int | None = field(None, "Input width; null = that of the checkpoint.", min=1, unit="pixels")
    input_height: int | None = field(
        None, "Input height; null = that of the checkpoint.", min=1, unit="pixels"
    )
    conf_threshold: float = field(0.0, "Leave out detections with a lower score before scoring.", min=0.0, max=1.0)
    max_dets: int = field(
        100,
        "Detections of each class and image that COCO's scores count (maxDets), in training too. The standard, and "
        "TAO's, is 100; RF-DETR's package uses 500. A model returns at most model.num_select of an image.",
        min=1,
        max=100_000,
        origin="ours",
    )
    is_quantized: bool = field(False, "The checkpoint is the output of quantize.")


@dataclass(frozen=True)
class InferenceSpec:
    """Detect objects in folders of images."""

    num_gpus: int = field(1, "Devices per node.", min=1)
    gpu_ids: list[int] = field([0], "Which GPUs; as many as num_gpus.", min=0)
    num_nodes: int = field(1, "Machines.", min=1)
    checkpoint: str = field(MISSING, "Model to use: a checkpoint, an ONNX file or a TFLite file.")
    trt_engine: str | None = field(None, "TensorRT engine to use instead of a checkpoint.")
    onnx_provider: str = field(
        "auto", "What runs an ONNX file; auto = CUDA where it can, else the CPU.", options=ONNX_PROVIDERS, origin="ours"
    )
    results_dir: str | None = field(None, "Folder of this command's results; null = <results_dir>/inference.")
    batch_size: int = field(-1, "Images per step; -1 = dataset.batch_size.", min=-1)
    color_map: dict[str, str] | None = field(
        None, "Class name to box colour (name or #rrggbb); classes left out get a colour of their own."
    )
    conf_threshold: float = field(0.5, "Smallest score that is drawn and written.", min=0.0, max=1.0)
    is_internal: bool = field(False, "One output folder per image sequence, boxes drawn without text.")
    input_width: int | None = field(None, "Input width; null = that of the checkpoint.", min=32, unit="pixels")
    input_height: int | None = field(
        None, "Input height; null = that of the checkpoint.", min=32, unit="pixels"
    )
    outline_width: int = field(3, "Width of the box outline.", min=1, unit="pixels")
    is_quantized: bool = field(False, "The checkpoint is the output of quantize.")


@dataclass(frozen=True)
class TfliteSpec:
    """Precision of a TFLite file."""

    data_type: str = field(
        "FP32",
        "FP16: weights in half the space, computed in FP32. INT8: convolutions and linear layers before the decoder "
        "compute with 8 bits, those of the decoder keep 8-bit weights.",
        options=("FP32", "FP16", "INT8"),
        origin="ours",
    )
    calibration: str | None = field(
        None,
        "INT8: a folder of images, or an array file (.npy) of images [N, 3, height, width] or channels last, RGB, "
        "uint8 or float 0..1; null = images of the data sources.",
        origin="ours",
    )
    calibration_images: int = field(100, "INT8: how many of them at most.", min=1, origin="ours")
    max_cost: float = field(
        0.1,
        "FP16, INT8: largest change of the detections against torch that is accepted; 0 = none, 1 = nothing in common.",
        min=0.0,
        max=1.0,
        origin="ours",
    )


@dataclass(frozen=True)
class ExportSpec:
    """Write a checkpoint as ONNX or TFLite."""

    results_dir: str | None = field(None, "Folder of this command's results; null = <results_dir>/export.")
    gpu_id: int = field(0, "Device to export on.", min=0)
    checkpoint: str = field(MISSING, "Weights to export.")
    onnx_file: str = field(MISSING, "File to write; for another format the suffix is that format's.")
    on_cpu: bool = field(False, "Export on the CPU.")
    input_channel: int = field(3, "Channels of the input: RGB.", min=3, options=(3,))
    input_width: int | None = field(
        None, "Input width; null = that of the checkpoint.", min=32, unit="pixels"
    )
    input_height: int | None = field(
        None, "Input height; null = that of the checkpoint.", min=32, unit="pixels"
    )
    opset_version: int = field(17, "ONNX operator set.", min=MIN_OPSET, max=MAX_OPSET)
    batch_size: int = field(-1, "Batch size of the graph; -1 = dynamic; 1 in TFLite, which has no dynamic one.", min=-1)
    verbose: bool = field(False, "Log what the exporter does.")
    format: str = field("onnx", "File format; tflite needs the extra `tflite`.", options=("onnx", "tflite"))
    serialize_nvdsinfer: bool = field(False, "Also write labels.txt and nvdsinfer_config.yaml for DeepStream.")
    is_quantized: bool = field(False, "The checkpoint is the output of quantize.")
    overwrite: bool = field(False, "Replace onnx_file where it exists.", origin="ours")
    include_postprocess: bool = field(
        False,
        "Add top-k to the graph: outputs boxes (xyxy, pixels of the input), scores and labels beside the raw ones.",
        origin="ours",
    )
    tolerance: float = field(
        1e-3,
        "Largest difference to torch, of a score and of a relative box coordinate, that export accepts.",
        above=0.0,
        origin="ours",
    )
    notes: str | None = field(None, "Text kept in the file's metadata.", origin="ours")
    layout: str = field(
        "tao",
        "Names of inputs and outputs, and pixels. tao: inputs (RGB 0..1) -> pred_logits, pred_boxes; rfdetr: input "
        "(normalised by ImageNet's mean and deviation) -> dets, labels, as RF-DETR's own export.",
        options=tuple(LAYOUTS),
        origin="ours",
    )
    backbone_only: bool = field(
        False, "Without decoder: the outputs are the maps that it would read, features, features_1, ...", origin="ours"
    )
    tflite: TfliteSpec = field(TfliteSpec, "With format tflite.")


@dataclass(frozen=True)
class CalibrationSpec:
    """Images for INT8 calibration."""

    cal_image_dir: list[str] = field(MISSING, "INT8: folders of calibration images.")
    cal_cache_file: str = field(MISSING, "INT8: calibration cache; reused if it exists.")
    cal_batch_size: int = field(1, "Images per calibration batch.", min=1)
    cal_batches: int = field(1, "Calibration batches.", min=1)


@dataclass(frozen=True)
class TensorRTSpec:
    """Engine settings."""

    workspace_size: int = field(1024, "Memory TensorRT may use while it builds.", min=0, unit="MB")
    min_batch_size: int = field(1, "Smallest batch of the profile.", min=1)
    opt_batch_size: int = field(1, "Batch the engine is tuned for.", min=1)
    max_batch_size: int = field(4, "Largest batch of the profile.", min=1)
    layers_precision: list[str] | None = field(
        [], "Precision of single layers, each `layer:precision`; * = all others."
    )
    data_type: str = field("FP32", "Precision of the engine.", options=("FP32", "FP16", "INT8"))
    calibration: CalibrationSpec = field(CalibrationSpec, "INT8 calibration.")


@dataclass(frozen=True)
class GenTrtEngineSpec:
    """Build a TensorRT engine from ONNX."""

    results_dir: str | None = field(None, "Folder of this command's results; null = <results_dir>/gen_trt_engine.")
    gpu_id: int = field(0, "Device to build on.", min=0)
    onnx_file: str = field(MISSING, "ONNX file to read.")
    trt_engine: str | None = field(MISSING, "Engine file to write.")
    timing_cache: str | None = field(None, "Timing cache, read and updated.")
    batch_size: int = field(-1, "Batch size of the engine; -1 = that of the ONNX file.", min=-1)
    verbose: bool = field(False, "Log what TensorRT does.")
    tensorrt: TensorRTSpec = field(TensorRTSpec, "Engine settings.")
    backend: str = field(
        "auto",
        "Library that builds: TensorRT, or TensorRT-RTX, which needs no GPU; none = only write the ONNX graph in the "
        "wanted precision and its report.",
        options=ENGINE_BACKENDS,
        origin="ours",
    )
    compute_capability: list[str] = field(
        [], "TensorRT-RTX: the GPUs to build for, such as SM89; empty = the GPU present.", origin="ours"
    )
    score_images: int = field(
        500, "Pictures of val_data_sources to score each precision on; -1 = all, 0 = none.", min=-1, origin="ours"
    )
    max_score_drop: float = field(
        0.01,
        "Largest loss of mAP (0..1) against FP32 on dataset.val_data_sources before the command fails.",
        min=0.0,
        max=1.0,
        origin="ours",
    )
    input_channel: int | None = field(None, "Accepted for old specs; read from the ONNX file.", origin="seed")
    input_width: int | None = field(None, "Accepted for old specs; read from the ONNX file.", origin="seed")
    input_height: int | None = field(None, "Accepted for old specs; read from the ONNX file.", origin="seed")


@dataclass(frozen=True)
class BindingSpec:
    """One pair of teacher and student outputs to bring together."""

    teacher_module_name: str = field(
        MISSING, "Module of the teacher, or srcs, dsrcs, bb_feats, pred_logits, pred_boxes."
    )
    student_module_name: str = field(
        MISSING, "Module of the student, or srcs, dsrcs, bb_feats, pred_logits, pred_boxes."
    )
    criterion: str = field(MISSING, "How they are compared.", options=("L1", "L2", "KL", "IOU"))
    weight: float = field(1.0, "Weight of this binding.")


@dataclass(frozen=True)
class DistillSpec:
    """Train a student with a teacher."""

    teacher: ModelSpec = field(ModelSpec, "The teacher's model section.")
    pretrained_teacher_model_path: str | None = field(MISSING, "Weights of the teacher.")
    bindings: list[BindingSpec] = field([], "Pairs of outputs to bring together.")
    results_dir: str | None = field(None, "Folder of this command's results; null = <results_dir>/distill.")
    align: str = field(
        "project",
        "Where shapes differ: project = a 1x1 projection learned with the student, and interpolation; error = refuse.",
        options=("project", "error"),
        origin="ours",
    )
    temperature: float = field(1.0, "KL: both sides are divided by it before the softmax.", above=0.0, origin="ours")
    warmup_epochs: int = field(
        0, "The distillation loss grows to its full weight, linearly, in this many epochs.", min=0, origin="ours"
    )
    decay_from_epoch: int | None = field(
        None,
        "From this epoch (counted from 0) on its weight shrinks linearly, to final_factor in the last epoch.",
        min=0,
        origin="ours",
    )
    final_factor: float = field(
        0.0,
        "Share of the weight in the last epoch, with decay_from_epoch; at 0 the teacher is not run.",
        min=0.0,
        max=1.0,
        origin="ours",
    )


@dataclass(frozen=True)
class TensorQuantizationSpec:
    """Quantization of one kind of tensor: weights or activations."""

    dtype: str = field("", "Number format.", options=("", "int8", "fp8_e4m3fn", "fp8_e5m2", "native"))
    observer_or_fake_quant: str = field("", "Name of the observer that collects the value range.")
    quant_axis: int | None = field(None, "Axis with a scale of its own per index; null = one scale per tensor.")
    observer_or_fake_quant_kwargs: dict[str, Any] | None = field({}, "Further arguments of the observer.")


@dataclass(frozen=True)
class LayerQuantizationSpec:
    """Quantization of the modules that a pattern names."""

    module_name: str = field(MISSING, "Pattern on the module's path or class name.")
    weights: TensorQuantizationSpec | None = field(None, "Quantization of the weights; null = none.")
    activations: TensorQuantizationSpec | None = field(None, "Quantization of the activations; null = none.")


@dataclass(frozen=True)
class QuantizeSpec:
    """Quantize a checkpoint after training."""

    backend: str | None = field(
        "torchao", "Library that quantizes.", options=("modelopt.pytorch", "torchao", "modelopt.onnx")
    )
    mode: str | None = field(
        "weight_only_ptq", "static_ptq needs calibration images.", options=("static_ptq", "weight_only_ptq")
    )
    algorithm: str | None = field(
        "minmax",
        "Calibration algorithm.",
        options=("minmax", "max", "entropy", "awq_clip", "awq_lite", "awq_full", "rtn_dq"),
    )
    layers: list[LayerQuantizationSpec] | None = field([], "What to quantize and how.")
    skip_names: list[str] | None = field([], "Modules to leave alone, by pattern.")
    model_path: str | None = field("", "Checkpoint to quantize.")
    results_dir: str | None = field("", "Folder of this command's results; empty = <results_dir>/quantize.")
    backend_kwargs: dict[str, Any] | None = field({}, "Further arguments of the library.")
    device: str = field("cuda", "Device to quantize on: cuda, cpu, cuda:1.")


@dataclass(frozen=True)
class ValidateDataSpec:
    """Check the data sets of a spec before training on them."""

    results_dir: str | None = field(
        None, "Folder of this command's results; null = <results_dir>/validate_data.", origin="ours"
    )
    num_pictures: int = field(
        60, "The most pictures that are drawn on the page of what to look at.", min=0, max=10_000, origin="ours"
    )
