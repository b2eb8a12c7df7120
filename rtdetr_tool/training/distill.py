"""Training a student with a teacher: the training module with one step changed.

The loss of a step is `distillation_loss_coef * factor(epoch) * sum(binding losses) + detection losses`. Both networks
see the same augmented pixels at the same size.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetr_tool.data.classes import ClassMap
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.errors import SpecError, UserError
from rtdetr_tool.losses.build import build_distillation
from rtdetr_tool.losses.distillation import Outputs
from rtdetr_tool.ops.structures import Batch
from rtdetr_tool.spec import DistillSpec, ExperimentSpec
from rtdetr_tool.spec.tables import FEATURES, PREDICTIONS
from rtdetr_tool.training.callbacks.ema import AVERAGED_KEY, RAW_KEY
from rtdetr_tool.training.feature_hooks import (
    check_complete,
    check_query_selection,
    tapped,
    tapped_queries,
    unknown_name,
)
from rtdetr_tool.training.module import DetectorModule
from rtdetr_tool.training.teacher_weights import copy_fitting, weights_to_copy

logger = logging.getLogger(__name__)

PROJECTIONS_KEY = "distillation"  # in a checkpoint: the learned projections, apart from the student's weights
_OWN = "distillation."  # how their names begin in the module
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher:
    """A frozen detector that runs beside a module without being a part of it.

    So neither checkpoints nor optimizers, averages or processes that exchange gradients know of it. It is in eval mode
    and runs without gradients in the precision of the training, on the device of its first images. Where no binding
    names a module inside it, it is folded as for deployment.
    """

    def __init__(self, detector: nn.Module, names: Sequence[str], with_queries: bool, precision: str = "fp32") -> None:
        if with_queries:
            check_query_selection(detector)
        foldable = all(name in (*FEATURES, *PREDICTIONS) for name in names)
        self.detector = (detector.deploy() if foldable else detector).eval().requires_grad_(False)
        self.detector.to(memory_format=torch.channels_last)
        self.names, self.with_queries = tuple(names), with_queries
        self.dtype = _PRECISIONS.get(precision)
        self._device: torch.device | None = None

    def __call__(self, images: Tensor) -> Outputs:
        """images [B, 3, H, W] float 0..1."""
        if self._device != images.device:
            self._settle(images.device)
        with torch.autocast(images.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            return self.look(images)

    def _settle(self, device: torch.device) -> None:
        """Move, and cast once what autocast would cast in each step."""
        self._device = device
        self.detector.to(device)
        for module in self.detector.modules() if self.dtype is not None else ():
            if isinstance(module, (nn.Conv2d, nn.Linear, nn.MultiheadAttention)):
                module.to(self.dtype)

    @torch.no_grad()
    def look(self, images: Tensor) -> Outputs:
        """What it says of the images, which are resized where the student's size is none of its own."""
        multiple = self.detector.size_multiple
        size = tuple(max(round(side / multiple), 1) * multiple for side in images.shape[-2:])
        if size != tuple(images.shape[-2:]):
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        with tapped(self.detector, self.names) as features:
            if not self.with_queries:
                return Outputs(features, self.detector(images))
            with tapped_queries(self.detector) as queries:
                predictions = self.detector(images)
            return Outputs(features, predictions, queries[0], self._in_query_space(features, queries[0].content))

    def _in_query_space(self, features: Mapping[str, list[Tensor]], content: Tensor) -> dict[str, list[Tensor]]:
        """Maps through the decoder's own projections, where its width is not the encoder's."""
        projections = self.detector.decoder.input_proj
        return {
            name: [project(level) for project, level in zip(projections, levels, strict=False)]
            for name, levels in features.items()
            if name in ("srcs", "dsrcs") and levels[0].shape[1] != content.shape[-1]
        }


class DistillModule(DetectorModule):
    """`DetectorModule` whose training step also compares the detector with a teacher.

    Args:
        teacher: a detector of this tool with its weights, on the CPU; it is taken over.
        teacher_classes: what the teacher's classes are called, where that is known.
    """

    def __init__(
        self, spec: ExperimentSpec, class_map: ClassMap, teacher: nn.Module, teacher_classes: ClassMap | None = None
    ) -> None:
        super().__init__(spec, class_map)
        distill = spec.distill
        check_names(distill, self.detector, teacher)
        self._start = weights_to_copy(teacher) if spec.model.load_teacher_enc_dec else {}
        self._teacher_classes = teacher_classes.to_list() if teacher_classes else []
        features = [binding for binding in distill.bindings if binding.student_module_name not in PREDICTIONS]
        self.names = [binding.student_module_name for binding in features]
        self.teacher = Teacher(
            teacher,
            [binding.teacher_module_name for binding in features],
            any(binding.criterion == "IOU" for binding in features),
            spec.train.precision,
        )
        own, theirs = self._probe(), self._probe_teacher()
        classes = shared_classes(
            distill, class_map, own.predictions.logits, teacher_classes, theirs.predictions.logits
        )
        self.distillation = build_distillation(
            distill, spec.model, _shapes(own.features), _shapes(theirs.features), classes
        )
        self.logged_terms = (*self.logged_terms, "loss_distillation", *self.distillation.names)

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The detection losses, `loss_distillation` (all bindings, weighted) and each of them; `loss` is the total."""
        factor = weight_factor(self.spec.distill, self.current_epoch, self.spec.train.num_epochs)
        factor *= self.spec.model.distillation_loss_coef
        if factor == 0:
            return super().compute_losses(batch)
        images = self.prepare_images(batch, multi_scale=True)
        with tapped(self.detector, self.names) as features:
            predictions = self.detector(images, batch.targets)
        losses = self.criterion(predictions, batch.targets)
        terms = self.distillation(Outputs(features, predictions), self.teacher(images), batch.targets)
        return {**losses, **terms, "loss": losses["loss"] + factor * terms["loss_distillation"]}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The learned projections train like the rest of the student, without weight decay."""
        projections = list(self.distillation.parameters())
        own = {"name": "projections", "lr": self.spec.train.optim.lr, "weight_decay": 0.0, "params": projections}
        return [*super().parameter_groups(), *([own] if projections else [])]

    def load_initial_weights(self) -> None:
        super().load_initial_weights()
        start, self._start = self._start, {}
        if start:
            copy_fitting(self.detector, start, self.class_map.to_list(), self._teacher_classes)

    # Checkpoints hold the student as `train` writes it; the projections lie beside it.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[PROJECTIONS_KEY] = {}
        for place in ("state_dict", RAW_KEY, AVERAGED_KEY):
            weights = checkpoint.get(place)
            if weights is not None:
                apart = {name: tensor for name, tensor in weights.items() if name.startswith(_OWN)}
                checkpoint[place] = {name: tensor for name, tensor in weights.items() if name not in apart}
                checkpoint[PROJECTIONS_KEY][place] = apart

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for place, apart in checkpoint.pop(PROJECTIONS_KEY, {}).items():
            checkpoint[place] = {**checkpoint[place], **apart}
        super().on_load_checkpoint(checkpoint)

    # What the outputs look like, before there is data

    @torch.no_grad()
    def _probe(self) -> Outputs:
        """A pass of a copy of the student as in training, so that neither statistics nor random numbers change."""
        student = copy.deepcopy(self.detector).train()
        with torch.random.fork_rng(devices=[]), tapped(student, self.names) as features:
            predictions = student(self._blank_images(2))
        _raise_if(check_complete(features, self.names, "student"))
        return Outputs(features, predictions)

    def _probe_teacher(self) -> Outputs:
        outputs = self.teacher.look(self._blank_images(1))
        _raise_if(check_complete(outputs.features, self.teacher.names, "teacher"))
        return outputs

    def _blank_images(self, count: int) -> Tensor:
        augmentation = self.spec.dataset.augmentation
        return torch.zeros(count, 3, *input_size(augmentation.train_spatial_size, augmentation.preserve_aspect_ratio))


def weight_factor(distill: DistillSpec, epoch: int, num_epochs: int) -> float:
    """Share of the distillation loss in an epoch (counted from 0), between 0 and 1.

    It grows linearly over `warmup_epochs`, full in the last of them, and shrinks linearly from `decay_from_epoch` on,
    to `final_factor` in the last epoch of all.
    """
    factor = min(1.0, (epoch + 1) / distill.warmup_epochs) if distill.warmup_epochs else 1.0
    start = distill.decay_from_epoch
    if start is not None and epoch >= start:
        passed = min(1.0, (epoch + 1 - start) / (num_epochs - start))
        factor *= 1.0 - (1.0 - distill.final_factor) * passed
    return factor


def check_names(distill: DistillSpec, student: nn.Module, teacher: nn.Module) -> None:
    """SpecError naming every end of a binding that is not there."""
    ends = (("teacher", teacher), ("student", student))
    _raise_if(
        f"distill.bindings[{index}].{whose}_module_name: the {whose} has {problem}"
        for index, binding in enumerate(distill.bindings)
        for whose, detector in ends
        if (problem := unknown_name(detector, getattr(binding, f"{whose}_module_name")))
    )


def shared_classes(
    distill: DistillSpec, own: ClassMap, logits: Tensor, theirs: ClassMap | None, teacher_logits: Tensor
) -> list[tuple[int, int]] | None:
    """(student's, teacher's index) of the data's classes, found by their names; None where the logits are the same.

    Raises:
        UserError: predictions are to be compared and the teacher lacks a class; features may come from any teacher.
    """
    counts = (logits.shape[-1], teacher_logits.shape[-1])
    names, their_names = ({e.index: e.name for e in classes.entries} if classes else {} for classes in (own, theirs))
    if counts[0] == counts[1] and (theirs is None or names == their_names):
        if theirs is None and any(binding.student_module_name in PREDICTIONS for binding in distill.bindings):
            logger.warning(
                "The teacher has no class names; its class logits are compared with the student's by position, which "
                "is right only if it has the classes of the data in the same order (%s).", _listed(names),
            )  # fmt: skip
        return None
    index_of = {name: index for index, name in their_names.items()}
    if set(names.values()) <= set(index_of):
        return [(index, index_of[name]) for index, name in names.items()]
    what = f"the teacher has {counts[1]} classes ({_listed(their_names)}), the data {counts[0]} ({_listed(names)})"
    compared = [b.student_module_name for b in distill.bindings if b.student_module_name in PREDICTIONS]
    if compared:
        raise UserError(
            f"distill.bindings compares {' and '.join(dict.fromkeys(compared))}, but {what}. Take a teacher that was "
            "trained on these classes, or bind features only (srcs, dsrcs, bb_feats)."
        )
    logger.warning("Another teacher than the data's: %s. Its features are used, its classes are not.", what)
    return None


def _raise_if(problems: Any) -> None:
    problems = list(problems)
    if problems:
        raise SpecError(problems)


def _shapes(features: Mapping[str, Sequence[Tensor]]) -> dict[str, list[tuple[int, ...]]]:
    return {name: [tuple(level.shape) for level in levels] for name, levels in features.items()}


def _listed(names: Mapping[int, str], limit: int = 8) -> str:
    listed = [f"{index}: {name}" for index, name in list(names.items())[:limit]]
    return ", ".join(listed) + (", ..." if len(names) > limit else "") if listed else "without names"
