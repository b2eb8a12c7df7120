"""The table of commands: summary, module, sections of the spec and required values of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rtdetr_tool.formats.table import exported_formats, titles
from rtdetr_tool.spec.fields import is_blank


@dataclass(frozen=True)
class Requirement:
    """A required value of a command: one of `fields`, unless another field has a certain value (None = any value).

    With `null_is_default`, null is a value: then it differs from an omitted field.
    """

    fields: tuple[str, ...]
    unless: tuple[str, str | bool | None] | None = None
    null_is_default: bool = False

    def is_waived_by(self, value: Any) -> bool:
        """Whether this value of the other field makes it unnecessary."""
        assert self.unless is not None
        return not is_blank(value) if self.unless[1] is None else bool(value == self.unless[1])


@dataclass(frozen=True)
class Command:
    """One command of `rtdetr`.

    Args:
        sections: top-level entries of its default spec; empty = the command has arguments instead of a spec.
        exclusive: it resumes from its results folder, so two runs must not share one.
    """

    name: str
    summary: str
    example: str
    sections: tuple[str, ...] = ()
    requires: tuple[Requirement, ...] = ()
    exclusive: bool = False

    @property
    def module(self) -> str:
        return f"rtdetr_tool.commands.{self.name}"

    @property
    def has_spec(self) -> bool:
        return bool(self.sections)


def _one_of(*fields: str) -> Requirement:
    return Requirement(fields)


_TRAIN_SOURCES, _VAL_SOURCES, _TEST_SOURCES = (
    (f"dataset.{split}_data_sources", "dataset.dataset_dir") for split in ("train", "val", "test")
)
_TRAINING_DATA = (Requirement(_TRAIN_SOURCES), Requirement(_VAL_SOURCES))

# Commands that read a checkpoint take architecture, classes and sizes from it, and a spec must not contradict it. So
# their sections do not include `model`.
_COMMANDS = (
    Command(
        "train",
        "train a detector",
        "rtdetr train -e specs/demo.yaml -r results train.num_epochs=20 train.precision=bf16",
        ("results_dir", "wandb", "mlflow", "model", "dataset", "train"),
        _TRAINING_DATA,
        exclusive=True,
    ),
    Command(
        "evaluate",
        "score a checkpoint on the test set (COCO metrics)",
        "rtdetr evaluate -e specs/demo.yaml -r results evaluate.checkpoint=results/train/rtdetr_model_best.pth",
        ("results_dir", "dataset", "evaluate"),
        (
            _one_of("evaluate.checkpoint", "evaluate.trt_engine"),
            Requirement(_TEST_SOURCES),
        ),
    ),
    Command(
        "inference",
        "detect objects in images and videos: annotated files, KITTI labels, COCO results, JSON lines",
        "rtdetr inference -e specs/demo.yaml -r results inference.checkpoint=results/train/rtdetr_model_best.pth "
        "inference.conf_threshold=0.4",
        ("results_dir", "dataset", "inference"),
        (_one_of("inference.checkpoint", "inference.trt_engine"), _one_of("dataset.infer_data_sources")),
    ),
    Command(
        "serve",
        "answer HTTP requests with detections, in batches",
        "rtdetr serve -e specs/demo.yaml -r results serve.checkpoint=results/train/rtdetr_model_best.pth "
        "serve.port=8000",
        ("results_dir", "serve"),
        (_one_of("serve.checkpoint"),),
    ),
    Command(
        "export",
        f"write a checkpoint as {titles(exported_formats())}, verified against PyTorch",
        "rtdetr export -e specs/demo.yaml -r results export.checkpoint=results/train/rtdetr_model_best.pth "
        "export.onnx_file=results/model.onnx",
        ("results_dir", "export"),
        (_one_of("export.checkpoint"), _one_of("export.onnx_file")),
    ),
    Command(
        "gen_trt_engine",
        "build a TensorRT engine (FP32, FP16, INT8) from an ONNX file and score it",
        "rtdetr gen_trt_engine -e specs/demo.yaml -r results gen_trt_engine.onnx_file=results/model.onnx "
        "gen_trt_engine.trt_engine=results/model.engine gen_trt_engine.tensorrt.data_type=FP16",
        ("results_dir", "gen_trt_engine"),
        (
            _one_of("gen_trt_engine.onnx_file"),
            Requirement(("gen_trt_engine.trt_engine",), ("gen_trt_engine.backend", "none"), null_is_default=True),
        ),
    ),
    Command(
        "distill",
        "train a small detector (the student) to imitate a larger one (the teacher)",
        "rtdetr distill -e specs/distill_demo.yaml -r results "
        "distill.pretrained_teacher_model_path=teacher/train/rtdetr_model_best.pth",
        ("results_dir", "wandb", "mlflow", "model", "dataset", "train", "distill"),
        (*_TRAINING_DATA, _one_of("distill.pretrained_teacher_model_path")),
        exclusive=True,
    ),
    Command(
        "automl",
        "search for the field values with the best validation score, as a series of training runs",
        "rtdetr automl -e specs/demo.yaml -r results automl.trials=20 automl.fields=[train.optim.lr]",
        ("results_dir", "wandb", "mlflow", "model", "dataset", "train", "automl"),
        (Requirement(_TRAIN_SOURCES, unless=("automl.supernet_checkpoint", None)), Requirement(_VAL_SOURCES)),
        exclusive=True,
    ),
    Command(
        "quantize",
        "quantize a trained detector to INT8 or FP8, scored before it is written",
        "rtdetr quantize -e specs/demo.yaml -r results quantize.model_path=results/train/rtdetr_model_best.pth "
        "quantize.mode=static_ptq",
        ("results_dir", "dataset", "quantize"),
        (_one_of("quantize.model_path"),),
    ),
    Command(
        "benchmark",
        "measure latency, throughput and memory of a model in every runtime",
        "rtdetr benchmark -e specs/demo.yaml -r results benchmark.checkpoint=results/train/rtdetr_model_best.pth",
        ("results_dir", "dataset", "benchmark"),
        (_one_of("benchmark.checkpoint"), Requirement(_TEST_SOURCES, unless=("benchmark.score", False))),
    ),
    Command(
        "validate_data",
        "check the datasets of a spec before training: labels, images, duplicates, classes",
        "rtdetr validate_data -e specs/demo.yaml -r results",
        ("results_dir", "dataset", "validate_data"),
        (
            _one_of(
                "dataset.train_data_sources",
                "dataset.val_data_sources",
                "dataset.test_data_sources",
                "dataset.dataset_dir",
            ),
        ),
    ),
    Command(
        "convert",
        "convert a checkpoint of NVIDIA TAO, official RT-DETR, RF-DETR or Hugging Face transformers to ours, and back",
        "rtdetr convert results/train/rtdetr_model_best.pth my-detector --to transformers",
    ),
    Command(
        "triton",
        "write a model repository for NVIDIA's Triton Inference Server from an ONNX file or a TensorRT engine",
        "rtdetr triton results/export/model.onnx models --name rtdetr",
    ),
    Command(
        "init",
        "write a training spec for a dataset, with the reason for each value",
        "rtdetr init path/to/dataset -o spec.yaml",
    ),
    Command(
        "report",
        "compare runs in one HTML page: scores, curves and differences of their specs",
        "rtdetr report results/baseline results/larger -o comparison",
    ),
    Command(
        "models",
        "list the published weights that can be used by name",
        "rtdetr models",
    ),
    Command(
        "download",
        "download published weights by name and verify them",
        "rtdetr download rf-detr-nano",
    ),
    Command(
        "push",
        "share a detector on the Hugging Face Hub, with a model card",
        "rtdetr push results/train/rtdetr_model_best.pth someone/my-detector --license apache-2.0",
    ),
    Command(
        "completion",
        "print the code that makes a shell complete commands, spec fields and their values",
        'eval "$(rtdetr completion bash)"',
    ),
    Command(
        "default_specs",
        "print or write the commented default spec of a command, or its JSON Schema",
        "rtdetr default_specs train -o train.yaml",
    ),
)
COMMANDS: dict[str, Command] = {command.name: command for command in _COMMANDS}
# Commands with a section of their own in the spec.
WITH_SPEC: dict[str, Command] = {name: command for name, command in COMMANDS.items() if command.has_spec}
