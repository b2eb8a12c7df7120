"""Build losses from a spec; the only module of `losses` that uses one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

from rtdetr_tool.errors import SpecError
from rtdetr_tool.losses.criterion import SetCriterion
from rtdetr_tool.losses.distillation import Alignment, DistillationLoss, FeatureBinding, PredictionBinding
from rtdetr_tool.losses.matcher import HungarianMatcher
from rtdetr_tool.spec import BindingSpec, DistillSpec, ModelSpec
from rtdetr_tool.spec.distill import PREDICTIONS

logger = logging.getLogger(__name__)

Shapes = Mapping[str, Sequence[tuple[int, ...]]]  # of each level of a module's output, by the module's name


class BuildModule(Protocol):
    """The part of `families/<name>/build.py` that builds losses."""

    def build_criterion(self, spec: ModelSpec) -> SetCriterion:
        """The training loss."""


def build_criterion(spec: ModelSpec) -> SetCriterion:
    """The training loss of the family `spec.arch`."""
    return cast(BuildModule, spec.family.module("build")).build_criterion(spec)


def build_distillation(
    spec: DistillSpec,
    model: ModelSpec,
    student: Shapes,
    teacher: Shapes,
    classes: Sequence[tuple[int, int]] | None = None,
) -> DistillationLoss:
    """The bindings of `spec` between outputs of these shapes; `SpecError` lists every pair that does not fit.

    Predictions are matched with the costs of the student's `model`; `classes` as in `DistillationLoss`.
    """
    problems: list[str] = []
    bindings: list[FeatureBinding | PredictionBinding] = []
    for index, binding in enumerate(spec.bindings):
        name = binding.student_module_name
        if name in PREDICTIONS:
            bindings.append(PredictionBinding(name, binding.criterion, binding.weight, spec.temperature))
        elif (feature := _feature_binding(spec, index, student, teacher, problems)) is not None:
            bindings.append(feature)
    if problems:
        raise SpecError(problems)
    return DistillationLoss(bindings, HungarianMatcher(model.class_cost, model.bbox_cost, model.giou_cost), classes)


def _feature_binding(
    spec: DistillSpec, index: int, student: Shapes, teacher: Shapes, problems: list[str]
) -> FeatureBinding | None:
    binding = spec.bindings[index]
    student_shapes, teacher_shapes = student[binding.student_module_name], teacher[binding.teacher_module_name]
    problem = _misfit(student_shapes, teacher_shapes, spec.align)
    if problem:
        problems.append(
            f"distill.bindings[{index}]: {binding.student_module_name} {_text(student_shapes)} of the student and "
            f"{binding.teacher_module_name} {_text(teacher_shapes)} of the teacher: {problem}"
        )
        return None
    channels = [(_channels(a), _channels(b), len(a)) for a, b in zip(student_shapes, teacher_shapes, strict=True)]
    _say(binding, student_shapes, teacher_shapes)
    return FeatureBinding(
        binding.teacher_module_name,
        binding.student_module_name,
        binding.criterion,
        binding.weight,
        Alignment(channels),
        spec.temperature,
    )


def _misfit(student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]], align: str) -> str | None:
    """Why outputs of these shapes cannot be bound, or None."""
    if len(student) != len(teacher):
        return f"they have {len(student)} and {len(teacher)} levels; bind outputs with the same number of levels"
    if any(len(a) != len(b) or len(a) not in (2, 3, 4) for a, b in zip(student, teacher, strict=True)):
        return "their kinds differ; maps [B, C, h, w], tokens [B, N, C] and vectors [B, C] must match"
    if any(len(a) == 3 and a[1] != b[1] for a, b in zip(student, teacher, strict=True)):
        return "the numbers of tokens differ; bind maps (srcs, dsrcs, bb_feats), which are interpolated, or pred_logits"
    if align == "error" and any(a[1:] != b[1:] for a, b in zip(student, teacher, strict=True)):
        return "the shapes differ and distill.align is error; use project for a learned 1x1 projection"
    return None


def _say(binding: BindingSpec, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
    """Log a binding, and how different shapes are aligned."""
    ways = []
    if any(_channels(a) != _channels(b) for a, b in zip(student, teacher, strict=True)):
        pairs = [f"{_channels(a)} to {_channels(b)}" for a, b in zip(student, teacher, strict=True)]
        ways.append(f"through learned projections of {', '.join(pairs)} channels")
    if any(len(a) == 4 and a[2:] != b[2:] for a, b in zip(student, teacher, strict=True)):
        ways.append("interpolated to the teacher's sizes")
    logger.info(
        "Distillation: %s of the student follows %s of the teacher (%s, weight %g)%s",
        binding.student_module_name, binding.teacher_module_name, binding.criterion, binding.weight,
        "".join(f", {way}" for way in ways),
    )  # fmt: skip


def _channels(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) == 4 else shape[-1]


def _text(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape[1:])) for shape in shapes)
