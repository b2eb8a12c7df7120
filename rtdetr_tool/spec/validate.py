"""Checks across fields: lengths that must agree, indices that must exist, values that a command requires."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from rtdetr_tool.errors import nearest_multiples
from rtdetr_tool.families import all_families
from rtdetr_tool.spec.augmentation import AugmentationSpec
from rtdetr_tool.spec.augmentation_checks import augmentation_problems
from rtdetr_tool.spec.automl import OF_TRIALS
from rtdetr_tool.spec.backbone_lora import BackboneLoraSpec
from rtdetr_tool.spec.checkpointer import CheckpointerSpec, checkpointer_problems
from rtdetr_tool.spec.commands import WITH_SPEC
from rtdetr_tool.spec.convert import changed_from_default, shown
from rtdetr_tool.spec.dataset import DatasetSpec
from rtdetr_tool.spec.distill import distill_problems, missing_bindings
from rtdetr_tool.spec.experiment import ExperimentSpec
from rtdetr_tool.spec.fields import is_blank
from rtdetr_tool.spec.model import ModelSpec
from rtdetr_tool.spec.outputs import output_problems
from rtdetr_tool.spec.queries import fields_of_other_families, reasons
from rtdetr_tool.spec.search_space import automl_problems
from rtdetr_tool.spec.serve import ServeSpec
from rtdetr_tool.spec.sources import source_problems
from rtdetr_tool.spec.sub_detectors import supernet_problems
from rtdetr_tool.spec.supernet import CHOICES
from rtdetr_tool.spec.tiles import tiles_problems
from rtdetr_tool.spec.train import TrainSpec


def find_problems(spec: ExperimentSpec, command: str | None = None) -> list[str]:
    """All inconsistencies between fields, and missing values that `command` requires."""
    problems = [*_model(spec.model, "model"), *_dataset(spec.dataset, spec.model.size_multiple), *_train(spec.train)]
    problems += augmentation_problems(spec)
    problems += _value_range(spec)
    if spec.distill is not None:
        problems += _model(spec.distill.teacher, "distill.teacher")
        problems += distill_problems(spec.distill, spec.train.num_epochs)
    for name in ("train", "evaluate", "inference"):
        problems += _devices(getattr(spec, name), name)
    for name in ("evaluate", "inference", "export"):
        problems += _batch_size(getattr(spec, name), name)
    for name in ("evaluate", "inference"):
        problems += tiles_problems(getattr(spec, name).tiles, f"{name}.tiles")
    problems += _engine(spec)
    problems += _serving(spec.serve)
    trains = command in ("train", "distill") or (command == "automl" and spec.automl.has_trials)
    if command and trains and spec.train.supernet.enabled:
        problems += supernet_problems(spec, command)
    if command == "automl" and trains:
        problems += automl_problems(spec)
    if command in ("train", "evaluate", "inference", "export"):
        problems += [
            f"{name}: {reason}" for name, reason in reasons("unsupported").items() if changed_from_default(name, spec)
        ]
    if command:
        problems += _missing(spec, command)
        problems += output_problems(spec, command)
    return problems


def inert_notes(spec: ExperimentSpec) -> list[str]:
    """One line for each field that the spec sets although it has no effect."""
    without_effect = dict(reasons("unused"))
    models = {"model": spec.model, **({"distill.teacher": spec.distill.teacher} if spec.distill else {})}
    for section, model in models.items():
        unread = fields_of_other_families(model.arch, section)
        without_effect |= dict.fromkeys(unread, f"{section}.arch {model.arch} does not use it")
    if not spec.train.checkpointer.enable_topk:
        of_ranking = (f"train.checkpointer.{entry.name}" for entry in fields(CheckpointerSpec))
        without_effect |= dict.fromkeys(of_ranking, "train.checkpointer.enable_topk is false")
    if not spec.model.backbone_lora.enabled:
        of_adapters = (f"model.backbone_lora.{entry.name}" for entry in fields(BackboneLoraSpec))
        without_effect |= dict.fromkeys(of_adapters, "model.backbone_lora.enabled is false")
    if not spec.automl.has_trials:
        of_trials = (f"automl.{name}" for name in OF_TRIALS)
        without_effect |= dict.fromkeys(of_trials, "automl.supernet_checkpoint is set, so nothing is trained")
    if not spec.train.supernet.enabled:
        of_supernet = (f"train.supernet.{name}" for name in CHOICES)
        without_effect |= dict.fromkeys(of_supernet, "train.supernet.enabled is false")
    return [
        f"{name} has no effect: {reason}" for name, reason in without_effect.items() if changed_from_default(name, spec)
    ]


def value_of(spec: Any, name: str) -> Any:
    """The value at a dotted name; None below an absent section."""
    for part in name.split("."):
        spec = None if spec is None else getattr(spec, part)
    return spec


def _model(model: ModelSpec, name: str) -> Iterator[str]:
    yield from model.family.problems(model, name)
    for other in all_families():
        if other is not model.family:
            yield from other.problems_unused(model, name)


def _dataset(dataset: DatasetSpec, multiple: int) -> Iterator[str]:
    yield from source_problems(dataset)
    if dataset.remap_mscoco_category and (dataset.num_classes or 80) < 80:
        yield (
            f"dataset.num_classes: {dataset.num_classes} is invalid; expected at least 80 with "
            "dataset.remap_mscoco_category"
        )
    yield from _sizes(dataset.augmentation, multiple)


def _value_range(spec: ExperimentSpec) -> Iterator[str]:
    values, channels = spec.dataset.value_range, spec.model.num_channels
    if values is None:
        return
    if len(values) not in (2, 2 * channels):
        each = "" if channels == 1 else f" or {2 * channels}, two per channel (model.num_channels is {channels})"
        yield f"dataset.value_range: expected 2 items{each}, but got {len(values)}"
    elif any(low >= high for low, high in zip(values[::2], values[1::2], strict=True)):
        yield f"dataset.value_range: {values} is invalid; expected a lower and then a higher value for each channel"


def _sizes(augmentation: AugmentationSpec, multiple: int) -> Iterator[str]:
    name = "dataset.augmentation"
    for field in ("train_spatial_size", "eval_spatial_size"):
        size = getattr(augmentation, field)
        if len(size) != 2 or any(side % multiple for side in size):
            yield (
                f"{name}.{field}: {size} is invalid; expected [height, width], each a multiple of {multiple}"
                f"{_nearest(size, multiple) if len(size) == 2 else ''}"
            )
    for index, size in enumerate(augmentation.multi_scales):
        sides = size if isinstance(size, (list, tuple)) else [size]
        count = 2 if isinstance(size, (list, tuple)) else 1
        right = len(sides) == count and all(
            isinstance(s, int) and not isinstance(s, bool) and s > 0 and s % multiple == 0 for s in sides
        )
        if not right:
            yield (
                f"{name}.multi_scales[{index}]: {shown(size)} is invalid; expected a side or [height, width], "
                f"multiples of {multiple}{_nearest(sides, multiple) if len(sides) == count else ''}"
            )


def _nearest(sides: Sequence[Any], multiple: int) -> str:
    """`, nearest: 616 or 672` for sides that are numbers."""
    if not sides or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        return ""
    return f", nearest: {' x '.join(nearest_multiples(side, multiple) for side in sides)}"


def _train(train: TrainSpec) -> Iterator[str]:
    yield from checkpointer_problems(train.checkpointer)
    if train.recompute_norms and train.compile:
        yield (
            "train.recompute_norms: not supported with train.compile=true, whose compiler decides what to recompute; "
            "set one of them to false"
        )
    if train.checkpoint_interval_unit == "epoch" and train.checkpoint_interval > train.num_epochs:
        yield (
            f"train.checkpoint_interval: {train.checkpoint_interval} is invalid; expected at most "
            f"train.num_epochs ({train.num_epochs})"
        )
    if train.validation_interval > train.num_epochs:
        yield (
            f"train.validation_interval: {train.validation_interval} is invalid; expected at most "
            f"train.num_epochs ({train.num_epochs})"
        )
    if train.optim.warmup_steps and train.optim.warmup_epochs:
        yield "train.optim.warmup_steps, train.optim.warmup_epochs: both are set; expected only one of them"
    if train.optim.optimizer == "AdamW" and train.optim.momentum >= 1.0:
        yield "train.optim.momentum: invalid value 1.0; expected a value below 1 for AdamW, which uses it as beta1"
    if train.drop_path_epochs > train.num_epochs:
        yield (
            f"train.drop_path_epochs: {train.drop_path_epochs} is invalid; expected at most train.num_epochs "
            f"({train.num_epochs})"
        )
    constant = train.optim.lr_flat_epochs + train.optim.lr_final_epochs
    if train.optim.lr_scheduler == "FlatCosine" and constant > train.num_epochs:
        yield (
            f"train.optim.lr_flat_epochs, train.optim.lr_final_epochs: together {constant:g} epochs; expected at most "
            f"train.num_epochs ({train.num_epochs})"
        )
    if train.optim.lr_scheduler == "MultiStep" and sorted(train.optim.lr_steps) != list(train.optim.lr_steps):
        yield f"train.optim.lr_steps: {train.optim.lr_steps} is invalid; expected ascending epochs"


def _devices(section: Any, name: str) -> Iterator[str]:
    if len(section.gpu_ids) != section.num_gpus:
        yield (
            f"{name}.gpu_ids: {section.gpu_ids} has {len(section.gpu_ids)} items; expected as many as "
            f"{name}.num_gpus, which is {section.num_gpus}"
        )
    if len(set(section.gpu_ids)) != len(section.gpu_ids):
        yield f"{name}.gpu_ids: {section.gpu_ids} contains a GPU twice"


def _batch_size(section: Any, name: str) -> Iterator[str]:
    if section.batch_size == 0:
        meaning = "dynamic" if name == "export" else "dataset.batch_size"
        yield f"{name}.batch_size: 0 is invalid; expected -1 ({meaning}) or at least 1"


def _engine(spec: ExperimentSpec) -> Iterator[str]:
    trt = spec.gen_trt_engine.tensorrt
    if not trt.min_batch_size <= trt.opt_batch_size <= trt.max_batch_size:
        yield (
            "gen_trt_engine.tensorrt: min_batch_size, opt_batch_size, max_batch_size are "
            f"{trt.min_batch_size}, {trt.opt_batch_size}, {trt.max_batch_size}; expected ascending"
        )
    if spec.gen_trt_engine.batch_size == 0:
        yield "gen_trt_engine.batch_size: 0 is invalid; expected -1 (that of the ONNX file) or at least 1"


def _serving(serve: ServeSpec) -> Iterator[str]:
    if serve.max_images > serve.max_queue:
        yield f"serve.max_images: {serve.max_images} is invalid; expected at most {serve.max_queue} (serve.max_queue)"


def _missing(spec: ExperimentSpec, command: str) -> Iterator[str]:
    if command in ("evaluate", "inference") and not spec.dataset.batch_size and getattr(spec, command).batch_size < 1:
        yield (
            f"{command}.batch_size: required, but not set; set a number such as 8, because only training "
            "resolves dataset.batch_size auto"
        )
    for needed in WITH_SPEC[command].requires if command in WITH_SPEC else ():
        if needed.unless and needed.is_waived_by(value_of(spec, needed.unless[0])):
            continue
        if all(is_blank(value_of(spec, name)) for name in needed.fields):
            yield f"{' or '.join(needed.fields)}: required by `{command}`, but not set"
    if command in ("train", "distill"):
        models = {"model": spec.model}
        if command == "distill" and spec.distill is not None:
            models["distill.teacher"] = spec.distill.teacher
        for name, model in models.items():
            outside = model.family.outside_weights(model)
            if outside is not None and is_blank(outside.path):
                yield (
                    f"{name}.{outside.field}: required, but not set; {outside.name} requires a file with its weights"
                )
    if command == "distill" and spec.distill is not None:
        yield from missing_bindings(spec.distill)
    section = getattr(spec, command, None)
    if section is not None and not section.results_dir and not spec.results_dir:
        yield f"results_dir or {command}.results_dir: required by `{command}`, but not set"
