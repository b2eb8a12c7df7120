"""`rtdetr distill`: train a student (`model`) with a teacher (`distill.teacher`) on the data sets of a spec."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

from rtdetr_tool.checkpoints.recorded_fields import value_at
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.formats.opening import OpenedDetector, open_detector
from rtdetr_tool.formats.resolve import RATIO, SIZE
from rtdetr_tool.spec import AugmentationSpec, LoadedSpec

logger = logging.getLogger(__name__)


def run(loaded: LoadedSpec) -> None:
    from rtdetr_tool.training.distill import DistillModule
    from rtdetr_tool.training.fit import fit

    teacher = open_teacher(loaded)
    spec = loaded.spec
    spec = replace(spec, train=replace(spec.train, results_dir=spec.distill.results_dir))
    build = partial(DistillModule, teacher=teacher.detector, teacher_classes=teacher.class_map)
    fit(spec, build_module=build)


def open_teacher(loaded: LoadedSpec) -> OpenedDetector:
    """The teacher: what the file says of itself, completed (and checked) by what the user says in `distill.teacher`."""
    section = loaded.spec.distill
    given = (loaded.explicit.get("distill") or {}).get("teacher") or {}
    as_model = LoadedSpec(replace(loaded.spec, model=section.teacher), {"model": given})
    try:
        teacher = open_detector(section.pretrained_teacher_model_path, as_model)
    except CheckpointError as error:
        text = str(error)
        for before in ("  - ", "set "):
            text = text.replace(f"{before}model.", f"{before}distill.teacher.")
        raise CheckpointError(f"distill.pretrained_teacher_model_path: {text}") from error
    check_images(teacher, loaded.spec.dataset.augmentation, section.pretrained_teacher_model_path)
    return teacher


def check_images(teacher: OpenedDetector, augmentation: AugmentationSpec, path: str) -> None:
    """The teacher sees the student's images; CheckpointError where it was trained on others.

    Another size is only warned about: teachers are trained at several.
    """
    recorded = value_at(teacher.meta, f"spec.{RATIO}")
    own = augmentation.preserve_aspect_ratio
    if recorded is not None and recorded != own:
        raise CheckpointError(
            f"distill.pretrained_teacher_model_path: {path} was trained with {RATIO} {str(recorded).lower()}, and this "
            f"run has {str(own).lower()}, so that the teacher would see images unlike those that it knows. Set {RATIO} "
            f"to {str(recorded).lower()}, or take another teacher."
        )
    known, seen = (input_size(size, own) for size in (_trained_size(teacher), augmentation.train_spatial_size))
    if known != seen:
        logger.warning("The teacher %s was trained for %d x %d; here it sees %d x %d", path, *known, *seen)


def _trained_size(teacher: OpenedDetector) -> list[int]:
    return value_at(teacher.meta, f"spec.{SIZE}") or teacher.spec.dataset.augmentation.eval_spatial_size
