"""Train a student with a teacher: the training module with a different training step.

The loss of a step is `distillation_loss_coef * factor(epoch) * sum(binding losses) + detection losses`. Both networks
see the same augmented images at the same size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.errors import SpecError, UserError
from rtdetr_tool.losses.build import build_distillation
from rtdetr_tool.losses.distillation import Outputs
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Batch
from rtdetr_tool.spec import DistillSpec, ExperimentSpec
from rtdetr_tool.spec.distill import PREDICTIONS
from rtdetr_tool.training.callbacks.ema import AVERAGED_KEY, RAW_KEY
from rtdetr_tool.training.devices import resolve_precision
from rtdetr_tool.training.feature_hooks import capture_outputs, missing_outputs, name_problem
from rtdetr_tool.training.module import DetectorModule
from rtdetr_tool.training.teacher import Teacher, copy_teacher_weights, encoder_decoder_weights, match_classes

PROJECTIONS_KEY = "distillation"  # in a checkpoint: the learned projections, separate from the student's weights
_PROJECTIONS = "distillation."  # prefix of their names in the module


class DistillModule(DetectorModule):
    """A `DetectorModule` that also compares the detector with a teacher in each training step.

    Args:
        teacher: a detector with its weights, on the CPU. It is frozen and may be modified.
        teacher_classes: the classes of the teacher, if known.
    """

    def __init__(
        self, spec: ExperimentSpec, class_map: ClassMap, teacher: Detector, teacher_classes: ClassMap | None = None
    ) -> None:
        super().__init__(spec, class_map)
        if spec.distill is None:
            raise SpecError("distill: required to train with a teacher, but not set")
        distill = self._distill = spec.distill
        check_channels(self.detector, teacher)
        check_names(distill, self.detector, teacher)
        self._start = encoder_decoder_weights(teacher) if spec.model.load_teacher_enc_dec else {}
        self._teacher_classes = teacher_classes.to_list() if teacher_classes else []
        features = [binding for binding in distill.bindings if binding.student_module_name not in PREDICTIONS]
        self.names = [binding.student_module_name for binding in features]
        self.teacher = Teacher(
            teacher,
            [binding.teacher_module_name for binding in features],
            any(binding.criterion == "IOU" for binding in features),
            resolve_precision(spec.train),
        )
        outputs, teacher_outputs = self._probe_student(), self._probe_teacher()
        classes = match_classes(
            distill, class_map, outputs.predictions.logits, teacher_classes, teacher_outputs.predictions.logits
        )
        self.distillation = build_distillation(
            distill, spec.model, _shapes(outputs.features), _shapes(teacher_outputs.features), classes
        )
        self.logged_terms = (*self.logged_terms, "loss_distillation", *self.distillation.names)

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The detection losses, each binding's loss, `loss_distillation` (their weighted sum) and the total `loss`."""
        factor = weight_factor(self._distill, self.current_epoch, self.spec.train.num_epochs)
        factor *= self.spec.model.distillation_loss_coef
        if factor == 0:
            losses = super().compute_losses(batch)
            unused = [0.0 * parameter.sum() for parameter in self.distillation.parameters()]  # DDP waits for gradients
            return {**losses, "loss": sum(unused, losses["loss"])}
        images = self.prepare_images(batch, multi_scale=True)
        with capture_outputs(self.detector, self.names) as features:
            predictions = self.predict_targets(images, batch.targets)
        losses = self.criterion(predictions, batch.targets)
        terms = self.distillation(Outputs(features, predictions), self.teacher(images), batch.targets)
        return {**losses, **terms, "loss": losses["loss"] + factor * terms["loss_distillation"]}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The learned projections are trained like the rest of the student, but without weight decay."""
        projections = list(self.distillation.parameters())
        group = {"name": "projections", "lr": self.spec.train.optim.lr, "weight_decay": 0.0, "params": projections}
        return [*super().parameter_groups(), *([group] if projections else [])]

    def load_initial_weights(self) -> None:
        super().load_initial_weights()
        start, self._start = self._start, {}
        if start:
            copy_teacher_weights(self.detector, start, self.class_map.to_list(), self._teacher_classes)

    # A checkpoint has the student as `train` saves it, and the projections under a key of their own.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[PROJECTIONS_KEY] = {}
        for key in ("state_dict", RAW_KEY, AVERAGED_KEY):
            weights = checkpoint.get(key)
            if weights is not None:
                projections = {name: tensor for name, tensor in weights.items() if name.startswith(_PROJECTIONS)}
                checkpoint[key] = {name: tensor for name, tensor in weights.items() if name not in projections}
                checkpoint[PROJECTIONS_KEY][key] = projections

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for key, projections in checkpoint.pop(PROJECTIONS_KEY, {}).items():
            checkpoint[key] = {**checkpoint[key], **projections}
        super().on_load_checkpoint(checkpoint)

    # Shapes of the outputs, before there is data

    @torch.no_grad()
    def _probe_student(self) -> Outputs:
        """Run a copy of the student in training mode, so that statistics and random state do not change."""
        student = copy.deepcopy(self.detector).train()
        with torch.random.fork_rng(devices=[]), capture_outputs(student, self.names) as features:
            predictions = student(self._blank_images(2))
        _raise_if_any(missing_outputs(features, self.names, "student"))
        return Outputs(features, predictions)

    def _probe_teacher(self) -> Outputs:
        outputs = self.teacher.run(self._blank_images(1))
        _raise_if_any(missing_outputs(outputs.features, self.teacher.names, "teacher"))
        return outputs

    def _blank_images(self, count: int) -> Tensor:
        augmentation = self.spec.dataset.augmentation
        size = input_size(augmentation.train_spatial_size, augmentation.preserve_aspect_ratio)
        return torch.zeros(count, self.detector.num_channels, *size)


def weight_factor(distill: DistillSpec, epoch: int, num_epochs: int) -> float:
    """Factor of the distillation loss in an epoch (counted from 0), 0..1.

    It grows linearly over `warmup_epochs` to 1 in the last of them, and shrinks linearly from `decay_from_epoch` to
    `final_factor` in the last epoch of the run.
    """
    factor = min(1.0, (epoch + 1) / distill.warmup_epochs) if distill.warmup_epochs else 1.0
    start = distill.decay_from_epoch
    if start is not None and epoch >= start:
        progress = min(1.0, (epoch + 1 - start) / (num_epochs - start))
        factor *= 1.0 - (1.0 - distill.final_factor) * progress
    return factor


def check_channels(student: Detector, teacher: Detector) -> None:
    """UserError if the networks cannot see the same images."""
    if student.num_channels != teacher.num_channels:
        raise UserError(
            f"The teacher has images with {teacher.num_channels} channels, but model.num_channels is "
            f"{student.num_channels}. Use a teacher that was trained with {student.num_channels} channels, or set "
            f"model.num_channels={teacher.num_channels}."
        )


def check_names(distill: DistillSpec, student: Detector, teacher: Detector) -> None:
    """Raise SpecError with every binding that refers to a module that does not exist."""
    _raise_if_any(
        f"distill.bindings[{index}].{role}_module_name: the {role} has {problem}"
        for index, binding in enumerate(distill.bindings)
        for role, detector in (("teacher", teacher), ("student", student))
        if (problem := name_problem(detector, getattr(binding, f"{role}_module_name")))
    )


def _raise_if_any(problems: Iterable[str]) -> None:
    problems = list(problems)
    if problems:
        raise SpecError(problems)


def _shapes(features: Mapping[str, Sequence[Tensor]]) -> dict[str, list[tuple[int, ...]]]:
    return {name: [tuple(level.shape) for level in levels] for name, levels in features.items()}
