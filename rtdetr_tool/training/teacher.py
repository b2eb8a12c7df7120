"""The teacher of a distillation: a frozen detector that runs next to the student."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetr_tool.checkpoints.class_rows import Classes, with_class_rows
from rtdetr_tool.errors import UserError
from rtdetr_tool.losses.distillation import Outputs
from rtdetr_tool.messages import first_of
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.spec import DistillSpec
from rtdetr_tool.spec.distill import FEATURES, PREDICTIONS
from rtdetr_tool.training.feature_hooks import capture_outputs, capture_queries, check_query_selection
from rtdetr_tool.training.mixed_precision import MIXED_PRECISION

logger = logging.getLogger(__name__)


class Teacher:
    """A frozen detector that is not a submodule of the module it teaches.

    Checkpoints, optimizers, EMA and distributed strategies therefore ignore it. It runs in eval mode, without
    gradients, in the precision of the training, and on the device of the first images. If no binding refers to a module
    inside it, it is folded as for deployment.
    """

    def __init__(self, detector: Detector, names: Sequence[str], with_queries: bool, precision: str = "fp32") -> None:
        if with_queries:
            check_query_selection(detector)
        foldable = all(name in (*FEATURES, *PREDICTIONS) for name in names)
        self.detector = (cast(Any, detector).deploy() if foldable else detector).eval().requires_grad_(False)
        self.detector.to(memory_format=torch.channels_last)
        self.names, self.with_queries = tuple(names), with_queries
        self.dtype = MIXED_PRECISION[precision].autocast
        self._device: torch.device | None = None

    def __call__(self, images: Tensor) -> Outputs:
        """images [B, 3, H, W] float 0..1."""
        if self._device != images.device:
            self._move_to(images.device)
        with torch.autocast(images.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            return self.run(images)

    def _move_to(self, device: torch.device) -> None:
        """Move to the device, and cast once what autocast would cast in each step."""
        self._device = device
        self.detector.to(device)
        for module in self.detector.modules() if self.dtype is not None else ():
            if isinstance(module, (nn.Conv2d, nn.Linear, nn.MultiheadAttention)):
                module.to(self.dtype)

    @torch.no_grad()
    def run(self, images: Tensor) -> Outputs:
        """Run the teacher, resizing the images if it does not accept the student's input size."""
        multiple = self.detector.size_multiple
        size = [max(round(side / multiple), 1) * multiple for side in images.shape[-2:]]
        if size != list(images.shape[-2:]):
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        with capture_outputs(self.detector, self.names) as features:
            if not self.with_queries:
                return Outputs(features, self.detector(images))
            with capture_queries(self.detector) as queries:
                predictions = self.detector(images)
            return Outputs(features, predictions, queries[0], self._in_query_space(features, queries[0].content))

    def _in_query_space(self, features: Mapping[str, list[Tensor]], content: Tensor) -> dict[str, list[Tensor]]:
        """Features after the decoder's input projections, where encoder and decoder have different widths."""
        projections = cast(nn.ModuleList, self.detector.decoder.input_proj)
        return {
            name: [project(level) for project, level in zip(projections, levels, strict=False)]
            for name, levels in features.items()
            if name in ("srcs", "dsrcs") and levels[0].shape[1] != content.shape[-1]
        }


def match_classes(
    distill: DistillSpec, student: ClassMap, logits: Tensor, teacher: ClassMap | None, teacher_logits: Tensor
) -> list[tuple[int, int]] | None:
    """(student's, teacher's index) of the data's classes, matched by name. None if the logits have the same classes.

    Raises:
        UserError: predictions are compared and the teacher lacks a class. (For features, its classes do not matter.)
    """
    counts = (logits.shape[-1], teacher_logits.shape[-1])
    names, teacher_names = ({e.index: e.name for e in m.entries} if m else {} for m in (student, teacher))
    compared = [b.student_module_name for b in distill.bindings if b.student_module_name in PREDICTIONS]
    if counts[0] == counts[1] and (teacher is None or names == teacher_names):
        if teacher is None and compared:
            logger.warning(
                "The teacher has no class names; comparing its class logits with the student's by position, which is "
                "only right if it has the classes of the data in the same order (%s)", _format_classes(names),
            )  # fmt: skip
        return None
    index_of = {name: index for index, name in teacher_names.items()}
    if set(names.values()) <= set(index_of):
        return [(index, index_of[name]) for index, name in names.items()]
    difference = (
        f"the teacher has {counts[1]} classes ({_format_classes(teacher_names)}), the data {counts[0]} "
        f"({_format_classes(names)})"
    )
    if compared:
        raise UserError(
            f"distill.bindings compares {' and '.join(dict.fromkeys(compared))}, but {difference}. Use a teacher that "
            "was trained on these classes, or bind only features (srcs, dsrcs, bb_feats)."
        )
    logger.warning("Using only the features of the teacher, not its classes: %s", difference)
    return None


def copy_teacher_weights(
    student: nn.Module, weights: Mapping[str, Tensor], classes: Classes, teacher_classes: Classes
) -> None:
    """Copy tensors of the same name and shape into the student's encoder and decoder, and log the result.

    Rows of class tensors are copied by class name.
    """
    targets = encoder_decoder_weights(student)
    arranged, rows = with_class_rows(weights, targets, classes, teacher_classes, "the teacher")
    copied = [name for name, tensor in targets.items() if name in arranged and arranged[name].shape == tensor.shape]
    other_shape = [name for name in targets if name in arranged and name not in copied]
    missing = [name for name in targets if name not in weights]
    with torch.no_grad():
        for name in copied:
            targets[name].copy_(arranged[name])
    lines = [f"Copied {len(copied)} of {len(targets)} tensors of encoder and decoder from the teacher."]
    lines += rows.lines("the teacher") if rows else []
    lines += [f"Different shape in the teacher: {first_of(other_shape, 8)}."] if other_shape else []
    lines += [f"Not in the teacher: {first_of(missing, 8)}."] if missing else []
    logger.log(logging.INFO if rows is None or rows.complete else logging.WARNING, "%s", " ".join(lines))


def encoder_decoder_weights(detector: nn.Module) -> dict[str, Tensor]:
    """The tensors of encoder and decoder by name."""
    state = detector.state_dict()
    return {name: tensor for name, tensor in state.items() if name.startswith(("encoder.", "decoder."))}


def _format_classes(names: Mapping[int, str], limit: int = 8) -> str:
    listed = [f"{index}: {name}" for index, name in list(names.items())[:limit]]
    return ", ".join(listed) + (", ..." if len(names) > limit else "") if listed else "without names"
