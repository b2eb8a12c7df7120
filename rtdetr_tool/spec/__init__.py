"""The spec: what it holds, how it is read and checked. Nothing here imports torch."""

from rtdetr_tool.spec.convert import spec_to_dict
from rtdetr_tool.spec.dataset import AugmentationSpec, DatasetSpec
from rtdetr_tool.spec.deploy import (
    BindingSpec,
    CalibrationSpec,
    DistillSpec,
    EvaluateSpec,
    ExportSpec,
    GenTrtEngineSpec,
    InferenceSpec,
    LayerQuantizationSpec,
    QuantizeSpec,
    TensorRTSpec,
    ValidateDataSpec,
)
from rtdetr_tool.spec.experiment import ExperimentSpec, MlflowSpec, WandbSpec
from rtdetr_tool.spec.fields import MISSING
from rtdetr_tool.spec.load import LoadedSpec, load_spec, read_spec, spec_from_dict
from rtdetr_tool.spec.model import FrozenFmSpec, ModelSpec
from rtdetr_tool.spec.rfdetr import SIZE_FIELDS, RfdetrSpec, resolve_rfdetr
from rtdetr_tool.spec.train import CudnnSpec, EmaSpec, OptimSpec, TrainSpec

__all__ = [
    "MISSING",
    "SIZE_FIELDS",
    "AugmentationSpec",
    "BindingSpec",
    "CalibrationSpec",
    "CudnnSpec",
    "DatasetSpec",
    "DistillSpec",
    "EmaSpec",
    "EvaluateSpec",
    "ExperimentSpec",
    "ExportSpec",
    "FrozenFmSpec",
    "GenTrtEngineSpec",
    "InferenceSpec",
    "LayerQuantizationSpec",
    "LoadedSpec",
    "MlflowSpec",
    "ModelSpec",
    "OptimSpec",
    "QuantizeSpec",
    "RfdetrSpec",
    "TensorRTSpec",
    "TrainSpec",
    "ValidateDataSpec",
    "WandbSpec",
    "load_spec",
    "read_spec",
    "resolve_rfdetr",
    "spec_from_dict",
    "spec_to_dict",
]
