"""The fields that `automl` searches and their ranges, checked against the declarations of the fields."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rtdetr_tool.spec.convert import suggestion
from rtdetr_tool.spec.experiment import ExperimentSpec
from rtdetr_tool.spec.queries import names_with, reads
from rtdetr_tool.spec.schema import field_names, section_type
from rtdetr_tool.spec.search_ranges import RANGE_KEYS, Parameter, declared, given_parameter, number_type
from rtdetr_tool.spec.slurm import slurm_problems

SECTIONS = ("model", "dataset", "train")  # of fields that can be searched


@dataclass(frozen=True)
class SearchSpace:
    """The parameters to search, the skipped fields of TAO with the reason, and the problems of the section."""

    parameters: tuple[Parameter, ...]
    skipped: Mapping[str, str]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Around:
    """A default range: fixed bounds, or factors on the value in the spec or on the number of epochs."""

    low: float
    high: float
    log: bool = False
    factors: bool = False
    of_epochs: bool = False
    if_zero: tuple[float, float] = (0.0, 0.0)


# Default ranges of the fields that TAO marks and of augmentation; those of learning rates and sizes follow the value in
# the spec. Mirrored or turned images are at most as frequent as upright ones.
_DEFAULT_RANGES = {
    "model.num_queries": _Around(0.5, 1.5, factors=True),
    "model.enc_layers": _Around(1, 2),
    "model.dec_layers": _Around(0.5, 1, factors=True),
    "dataset.batch_size": _Around(0.5, 2, factors=True, log=True),
    "dataset.augmentation.distortion_prob": _Around(0, 1),
    "dataset.augmentation.iou_crop_prob": _Around(0, 1),
    "dataset.augmentation.zoom_out_prob": _Around(0, 1),
    "dataset.augmentation.flip_prob": _Around(0, 0.5),
    "dataset.augmentation.vertical_flip_prob": _Around(0, 0.5),
    "dataset.augmentation.rotate90_prob": _Around(0, 0.75),
    "dataset.augmentation.rotation_prob": _Around(0, 1),
    "dataset.augmentation.rotation_degrees": _Around(2, 30),
    "dataset.augmentation.scale_jitter_prob": _Around(0, 1),
    "dataset.augmentation.mosaic_prob": _Around(0, 1),
    "dataset.augmentation.mixup_prob": _Around(0, 0.5),
    "dataset.augmentation.copy_paste_prob": _Around(0, 1),
    "dataset.augmentation.start_epoch": _Around(0, 0.1, of_epochs=True),
    "dataset.augmentation.mix_stop_epoch": _Around(0.4, 1, of_epochs=True),
    "dataset.augmentation.no_aug_epochs": _Around(0, 0.3, of_epochs=True),
    "dataset.repeat_threshold": _Around(1e-3, 0.1, log=True),
    "train.ema.decay": _Around(0.99, 0.9999),
    "train.optim.lr": _Around(0.1, 10, factors=True, log=True),
    "train.optim.lr_backbone": _Around(0.1, 10, factors=True, log=True),
    "train.optim.momentum": _Around(0.8, 0.99),
    "train.optim.weight_decay": _Around(0.1, 10, factors=True, log=True, if_zero=(1e-6, 1e-2)),
    "train.optim.lr_step_size": _Around(0.5, 2, factors=True),
    "train.optim.lr_decay": _Around(0.05, 0.5, log=True),
}


def search_space(spec: ExperimentSpec) -> SearchSpace:
    """The parameters of the `automl` section in the order of the schema, and the problems of the section."""
    section, problems = spec.automl, list[str]()
    skipped = dict(_without_effect(spec)) if section.fields is None else {}
    names = [name for name in names_with("automl", True) if _searchable(name)] if section.fields is None else []
    for name in section.fields or ():
        if problem := _name_problem(name):
            problems.append(f"automl.fields: {problem}")
        else:
            names.append(name)
    given = dict(_flat(section.parameters))
    for name in given:
        if problem := _name_problem(name):
            problems.append(f"automl.parameters: {problem}")
        else:
            names.append(name)
    order = {name: number for number, name in enumerate(field_names())}
    parameters = []
    for name in sorted({*names}, key=order.__getitem__):
        if name in given:
            if given[name] is None:
                continue
            parameter = given_parameter(name, given[name], problems)
        elif name in skipped:
            continue
        else:
            parameter = _default(name, spec, problems)
        if parameter is not None:
            parameters.append(parameter)
    if not parameters and not problems:
        problems.append("automl.fields: there is nothing to search; expected at least one field")
    skipped = {name: reason for name, reason in skipped.items() if name not in given}
    return SearchSpace(tuple(parameters), skipped, tuple(problems))


def automl_problems(spec: ExperimentSpec) -> Iterator[str]:
    """What is wrong with the `automl` section, and with the rest of the spec for a search."""
    section, space = spec.automl, search_space(spec)
    yield from space.problems
    yield from slurm_problems(section.slurm)
    if section.has_latency and section.effective_pruner != "none":
        yield (
            f"automl.pruner: {section.pruner} is not supported with latency as second objective, because a trial has "
            "one score until it ends; use none"
        )
    if spec.train.num_gpus > 1 or spec.train.num_nodes > 1:
        yield (
            "train.num_gpus, train.num_nodes: a trial runs on one device; set both to 1, and the number of trials that "
            "run at the same time with automl.workers"
        )
    if spec.train.resume_training_checkpoint_path:
        yield (
            "train.resume_training_checkpoint_path: every trial would resume from the same checkpoint; start from its "
            "weights with train.pretrained_model_path"
        )
    if spec.train.is_dry_run:
        yield "train.is_dry_run: a dry run has no score to search for; set it to false"
    if section.sampler == "grid":
        for parameter in space.parameters:
            if not parameter.choices and not parameter.step and not parameter.whole:
                yield f"automl.parameters: {parameter.name}: sampler grid requires choices or a step"


def _flat(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, range); `train: {optim: {lr: {min: ...}}}` is the same as `train.optim.lr: {min: ...}`."""
    for key, value in parameters.items():
        name = f"{prefix}{key}"
        is_section = any(field.startswith(f"{name}.") for field in field_names())
        if is_section and isinstance(value, Mapping) and value and not set(value) & set(RANGE_KEYS):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _name_problem(name: str) -> str | None:
    """Why this field cannot be searched; None if it can."""
    if name not in field_names():
        return f"{name}: no such field{suggestion(name)}"
    if not _searchable(name):
        return f"{name} cannot be searched; expected a field of {', '.join(SECTIONS)} that is not a section or a path"
    return None


def _searchable(name: str) -> bool:
    entry, hint = declared()[name]
    inside = name.split(".")[0] in SECTIONS and "[]" not in name
    return inside and not section_type(hint) and not entry.metadata["path"] and not name.endswith("_sources")


def _default(name: str, spec: ExperimentSpec, problems: list[str]) -> Parameter | None:
    """The parameter of a field without a range in the spec; None if only one value is possible."""
    entry, hint = declared()[name]
    rules, value, kind = entry.metadata, _value(spec, name), number_type(name)
    if hint is bool:
        return Parameter(name, choices=(False, True))
    if rules["options"] is not None and kind is None and not rules["prefix"]:
        return Parameter(name, choices=tuple(rules["options"]))
    around = _DEFAULT_RANGES.get(name)
    if around is None or kind is None:
        problems.append(f"automl.fields: {name} has no default range; set it in automl.parameters")
        return None
    low, high = around.low, around.high
    if around.factors:
        low, high = around.if_zero if not value else (low * value, high * value)
    elif around.of_epochs:
        low, high = low * spec.train.num_epochs, high * spec.train.num_epochs
    if kind is int:
        least = 1 if around.low else 0
        low, high = float(max(round(low), least)), float(max(round(high), least))
    limit = rules["max"]
    high = high if limit is None else min(high, limit)
    low = low if rules["min"] is None else max(low, rules["min"])
    if name == "model.num_queries":  # fewer would be refused
        low = max(low, math.ceil(spec.model.num_select / (spec.dataset.num_classes or 1)))
    if low >= high:
        return None
    return Parameter(name, low, high, around.log, None, kind is int)


def _value(spec: Any, name: str) -> Any:
    for part in name.split("."):
        spec = getattr(spec, part)
    return spec


def _without_effect(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    """The fields that TAO marks and that are not searched unless the user names them, with the reason."""
    optim = spec.train.optim
    for name in names_with("automl", True):
        if name.startswith("model.") and not reads(spec.model.arch, name):
            yield name, f"model.arch {spec.model.arch} does not use it"
    yield "dataset.workers", "it does not change the score"
    yield "train.num_epochs", "it is the cost of a trial"
    yield "model.num_select", "it only limits the number of detections"
    if not spec.dataset.batch_size:
        yield "dataset.batch_size", "auto determines it"
    if not spec.train.enable_ema:
        yield "train.ema.decay", "train.enable_ema is false"
    if not spec.model.train_backbone:
        yield "train.optim.lr_backbone", "model.train_backbone is false"
    if optim.optimizer not in ("AdamW", "SGD"):
        yield "train.optim.momentum", f"{optim.optimizer} does not use it"
    decays = {"MultiStep": any(epoch < spec.train.num_epochs for epoch in optim.lr_steps)}
    decays["StepLR"] = optim.lr_step_size < spec.train.num_epochs
    if not decays.get(optim.lr_scheduler, False):
        yield "train.optim.lr_decay", "the learning rate does not decay in steps within train.num_epochs"
    if not (optim.lr_scheduler == "StepLR" and decays["StepLR"]):
        yield "train.optim.lr_step_size", "the learning rate does not decay in steps of it within train.num_epochs"
