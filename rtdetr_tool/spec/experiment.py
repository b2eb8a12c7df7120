"""The whole spec: one section per part of the program."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_tool.spec.benchmark import BenchmarkSpec
from rtdetr_tool.spec.dataset import DatasetSpec
from rtdetr_tool.spec.distill import DistillSpec
from rtdetr_tool.spec.evaluate import EvaluateSpec
from rtdetr_tool.spec.export import ExportSpec
from rtdetr_tool.spec.fields import field
from rtdetr_tool.spec.gen_trt_engine import GenTrtEngineSpec
from rtdetr_tool.spec.inference import InferenceSpec
from rtdetr_tool.spec.model import ModelSpec
from rtdetr_tool.spec.quantize import QuantizeSpec
from rtdetr_tool.spec.train import TrainSpec
from rtdetr_tool.spec.validate_data import ValidateDataSpec


@dataclass(frozen=True)
class WandbSpec:
    """Weights & Biases logging; only active when the wandb package and a login are there."""

    enable: bool = field(True, "Log to Weights & Biases if it is installed and logged in.")
    project: str = field("TAO Toolkit", "Project.")
    entity: str | None = field("", "Team or user.")
    tags: list[str] = field(["training", "tao-toolkit"], "Tags of the run.")
    reinit: bool = field(False, "Allow several runs in one process.", unused="one process makes one run")
    sync_tensorboard: bool = field(False, "Copy what TensorBoard logs.")
    save_code: bool = field(False, "Save the calling script with the run.")
    name: str = field("TAO Toolkit training experiment", "Name of the run.")
    run_id: str = field("", "Id of a run to go on with.")


@dataclass(frozen=True)
class MlflowSpec:
    """MLflow logging. Credentials belong into MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN."""

    enable: bool = field(False, 'Log to MLflow; `pip install "rtdetr-tool[mlflow]"`.', origin="ours")
    tracking_uri: str | None = field(
        None,
        "Server (https://...) or store (sqlite:///...); null = MLFLOW_TRACKING_URI, else mlflow.db in the results "
        "folder of the run.",
        origin="ours",
    )
    experiment: str = field("rtdetr", "Experiment that the run belongs to; made where there is none.", origin="ours")
    run_name: str | None = field(None, "Name of the run; null = MLflow finds one.", origin="ours")
    tags: dict[str, str] = field({}, "Tags of the run.", origin="ours")
    run_id: str | None = field(None, "Id of a run to go on with.", origin="ours")


@dataclass(frozen=True)
class ExperimentSpec:
    """Everything a spec file can say."""

    model_name: str | None = field(None, "Accepted for TAO's launcher.", unused="only TAO's launcher uses it")
    encryption_key: str | None = field(
        None, "Accepted for old specs; files are not encrypted.", unused="checkpoints are not encrypted"
    )
    results_dir: str | None = field(
        "/results", "Root of all results; each command writes into a folder below it.", path="results"
    )
    wandb: WandbSpec = field(WandbSpec, "Weights & Biases logging.")
    mlflow: MlflowSpec = field(MlflowSpec, "MLflow logging.")
    model: ModelSpec = field(ModelSpec, "Architecture, matcher and loss weights.")
    dataset: DatasetSpec = field(DatasetSpec, "Sources, loading and augmentation.")
    train: TrainSpec = field(TrainSpec, "How to train.")
    evaluate: EvaluateSpec = field(EvaluateSpec, "How to evaluate.")
    inference: InferenceSpec = field(InferenceSpec, "How to run inference.")
    export: ExportSpec = field(ExportSpec, "How to export.")
    gen_trt_engine: GenTrtEngineSpec = field(GenTrtEngineSpec, "How to build a TensorRT engine.")
    benchmark: BenchmarkSpec = field(BenchmarkSpec, "How to measure speed.")
    distill: DistillSpec | None = field(None, "How to distill.")
    quantize: QuantizeSpec = field(QuantizeSpec, "How to quantize.")
    validate_data: ValidateDataSpec = field(ValidateDataSpec, "How to check data sets.")
