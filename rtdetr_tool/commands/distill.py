"""`rtdetr distill`: train a student (`model`) with a teacher (`distill.teacher`) on the datasets of a spec."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

from rtdetr_tool.checkpoints.recorded_fields import value_at
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.formats.opening import OpenedDetector, open_detector
from rtdetr_tool.formats.resolve import RATIO, SIZE
from rtdetr_tool.json_output import command_output
from rtdetr_tool.spec import AugmentationSpec, LoadedSpec
from rtdetr_tool.spec.required import required, results_folder

logger = logging.getLogger(__name__)


def run(loaded: LoadedSpec) -> None:
    from rtdetr_tool.training.distill import DistillModule
    from rtdetr_tool.training.fit import fit

    teacher = open_teacher(loaded)
    spec = loaded.spec
    folder = results_folder(spec.distill, "distill")
    spec = replace(spec, train=replace(spec.train, results_dir=str(folder)))
    build = partial(DistillModule, teacher=teacher.detector, teacher_classes=teacher.class_map)
    command_output().results = fit(spec, build_module=build).to_dict()


def open_teacher(loaded: LoadedSpec) -> OpenedDetector:
    """The teacher of the checkpoint, which fields that the user set in `distill.teacher` must not contradict."""
    section = required(loaded.spec.distill, "distill")
    path = required(section.pretrained_teacher_model_path, "distill.pretrained_teacher_model_path")
    given = (loaded.explicit.get("distill") or {}).get("teacher") or {}
    as_model = LoadedSpec(replace(loaded.spec, model=section.teacher), {"model": given})
    try:
        teacher = open_detector(path, as_model)
    except CheckpointError as error:
        text = str(error)
        for before in ("  - ", "set "):
            text = text.replace(f"{before}model.", f"{before}distill.teacher.")
        raise CheckpointError(f"distill.pretrained_teacher_model_path: {text}") from error
    check_images(teacher, loaded.spec.dataset.augmentation, path)
    return teacher


def check_images(teacher: OpenedDetector, augmentation: AugmentationSpec, path: str) -> None:
    """CheckpointError if the teacher was trained on images with another aspect ratio than those of the student.

    Another size is only a warning, because teachers may be trained at several sizes.
    """
    recorded = value_at(teacher.meta, f"spec.{RATIO}")
    ratio = augmentation.preserve_aspect_ratio
    if recorded is not None and recorded != ratio:
        raise CheckpointError(
            f"distill.pretrained_teacher_model_path: {path} was trained with {RATIO} {str(recorded).lower()}, but this "
            f"run uses {str(ratio).lower()}. Set {RATIO} to {str(recorded).lower()}, or use another teacher."
        )
    trained, size = (input_size(side, ratio) for side in (_trained_size(teacher), augmentation.train_spatial_size))
    if trained != size:
        logger.warning("The teacher %s was trained for %d x %d, but gets images of %d x %d", path, *trained, *size)


def _trained_size(teacher: OpenedDetector) -> list[int]:
    return value_at(teacher.meta, f"spec.{SIZE}") or teacher.spec.dataset.augmentation.eval_spatial_size
