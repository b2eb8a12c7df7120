"""The distillation loss: distances between pairs of student and teacher outputs.

Shape legend: B batch, C channels or classes, h, w size of a map, N tokens, S decoder layers of the student, Q queries,
P matched pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetr_tool.losses.imitation import (
    box_distance,
    class_distance,
    masked_square,
    mean_absolute,
    mean_square,
    query_quality,
    relative_entropy,
    target_mask,
)
from rtdetr_tool.losses.matcher import HungarianMatcher, PaddedTargets
from rtdetr_tool.ops.boxes import box_iou, cxcywh_to_xyxy
from rtdetr_tool.ops.structures import Predictions, Target, TrainingPredictions

_ABSENT = -100.0  # logit of a class that the teacher does not have


class Queries(NamedTuple):
    """The selected queries that an RT-DETR teacher's decoder starts from."""

    content: Tensor  # [B, Q, C]
    scores: Tensor  # [B, Q] 0..1, of the best class
    boxes: Tensor  # [B, Q, 4] cxcywh 0..1


@dataclass
class Outputs:
    """Results of a forward pass: outputs of modules by name, and predictions."""

    features: dict[str, list[Tensor]]
    predictions: Predictions
    queries: Queries | None = None
    in_query_space: dict[str, list[Tensor]] = field(
        default_factory=dict
    )  # maps with the width of the queries, if it differs


class Matched(NamedTuple):
    """Pairs of student and teacher queries that are matched with the same object."""

    student_logits: Tensor  # [P, C]
    student_boxes: Tensor  # [P, 4] cxcywh 0..1
    teacher_logits: Tensor
    teacher_boxes: Tensor
    weight: Tensor  # [P] 0..1, quality of the teacher's prediction


class Alignment(nn.Module):
    """Aligns the student's tensors with the shape of the teacher's.

    Different channels: a 1x1 convolution trained with the student (a linear layer for tokens). Different map sizes:
    bilinear interpolation.

    Args:
        channels: per level (student channels, teacher channels, number of tensor axes).
    """

    def __init__(self, channels: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Identity()
            if inputs == outputs
            else nn.Conv2d(inputs, outputs, 1)
            if axes == 4
            else nn.Linear(inputs, outputs)
            for inputs, outputs, axes in channels
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Tensor]:
        aligned = [project(level) for project, level in zip(self.projections, student, strict=True)]
        return [
            F.interpolate(level, size=target.shape[-2:], mode="bilinear", align_corners=False)
            if target.ndim == 4 and level.shape[-2:] != target.shape[-2:]
            else level
            for level, target in zip(aligned, teacher, strict=True)
        ]


class FeatureBinding(nn.Module):
    """Distance between the outputs of a student module and a teacher module, summed over their levels.

    L1 and L2 are means over all elements; KL compares distributions (`imitation.relative_entropy`). IOU is the
    target-aware imitation of DETRDistill (Chang et al. 2023, arXiv:2211.10156) as in NVIDIA TAO::

        quality_n = score_n * max over objects g of IoU(box_n, g)       score_n without objects
        m(p)      = max(sum_n quality_n * cos(query_n, teacher(p)), 0.01) / its maximum over the image
        loss      = sum over levels of mean((m * student - m * teacher)^2)

    with the teacher's selected queries n (content [B, Q, C], score 0..1, box cxcywh 0..1 as for objects) and its
    maps [B, C, h, w].
    """

    def __init__(
        self, teacher: str, student: str, criterion: str, weight: float, alignment: Alignment, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.teacher, self.student, self.criterion = teacher, student, criterion
        self.weight, self.temperature = weight, temperature
        self.alignment = alignment

    def forward(self, student: Outputs, teacher: Outputs, targets: PaddedTargets) -> Tensor:
        teacher_levels = teacher.features[self.teacher]
        student_levels = self.alignment(student.features[self.student], teacher_levels)
        if self.criterion == "IOU":
            losses = self._target_aware(student_levels, teacher_levels, teacher, targets)
        elif self.criterion == "KL":
            pairs = zip(student_levels, teacher_levels, strict=True)
            losses = [relative_entropy(a, b, self.temperature) for a, b in pairs]
        else:
            distance = mean_absolute if self.criterion == "L1" else mean_square
            losses = [distance(a, b) for a, b in zip(student_levels, teacher_levels, strict=True)]
        return torch.stack(losses).sum()

    def _target_aware(
        self,
        student_levels: Sequence[Tensor],
        teacher_levels: Sequence[Tensor],
        teacher: Outputs,
        targets: PaddedTargets,
    ) -> list[Tensor]:
        queries = teacher.queries
        assert queries is not None  # the hooks of an IOU binding collect them
        quality = query_quality(queries.scores, queries.boxes, targets)
        compared = teacher.in_query_space.get(self.teacher, teacher_levels)
        masks = [target_mask(level, queries.content, quality) for level in compared]
        return [masked_square(a, b, mask) for a, b, mask in zip(student_levels, teacher_levels, masks, strict=True)]


class PredictionBinding(nn.Module):
    """Distance between `pred_logits` or `pred_boxes` of matched queries, averaged over pairs with `Matched.weight`.

    Queries of student and teacher have no common order, so they are matched for every decoder layer of the student, as
    in the logits distillation of DETRDistill (Chang et al. 2023, arXiv:2211.10156). Unlike there, they are matched not
    with each other but both with the objects (see `match_queries`).
    """

    def __init__(self, name: str, criterion: str, weight: float, temperature: float = 1.0) -> None:
        super().__init__()
        self.teacher = self.student = name
        self.criterion, self.weight, self.temperature = criterion, weight, temperature

    def forward(self, pairs: Matched) -> Tensor:
        if self.student == "pred_logits":
            distance = class_distance(pairs.student_logits, pairs.teacher_logits, self.criterion, self.temperature)
        else:
            distance = box_distance(pairs.student_boxes, pairs.teacher_boxes, self.criterion)
        return (pairs.weight * distance).sum() / pairs.weight.sum().clamp(min=1e-6)


class DistillationLoss(nn.Module):
    """The weighted losses `loss_distillation_<student module>_<criterion>` of all bindings, and their sum.

    Args:
        classes: (student, teacher) class indices of the classes that both have; None if their logits are the same.
    """

    def __init__(
        self,
        bindings: Sequence[FeatureBinding | PredictionBinding],
        matcher: HungarianMatcher,
        classes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__()
        self.bindings = nn.ModuleList(bindings)
        self.matcher, self.classes = matcher, classes
        self.names: list[str] = []
        for binding in bindings:
            name = f"loss_distillation_{binding.student}_{binding.criterion}"
            count = sum(other == name or other.startswith(f"{name}_") for other in self.names)
            self.names.append(f"{name}_{count + 1}" if count else name)

    def forward(self, student: Outputs, teacher: Outputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        padded = PaddedTargets.of(targets)
        pairs = None
        terms: dict[str, Tensor] = {}
        for name, binding in zip(self.names, self.bindings, strict=True):
            if isinstance(binding, PredictionBinding):
                if pairs is None:
                    pairs = self._pairs(student.predictions, teacher.predictions, padded)
                distance = binding(pairs)
            else:
                distance = binding(student, teacher, padded)
            terms[name] = binding.weight * distance
        return {**terms, "loss_distillation": torch.stack(list(terms.values())).sum()}

    def _pairs(self, student: Predictions, teacher: Predictions, objects: PaddedTargets) -> Matched:
        if self.classes is None:
            return match_queries(self.matcher, student, teacher, objects)
        index = torch.tensor(list(self.classes)).to(teacher.logits.device, non_blocking=True)
        student_index, teacher_index = index.unbind(1)
        logits = teacher.logits.new_full((*teacher.logits.shape[:2], student.logits.shape[-1]), _ABSENT)
        logits[..., student_index] = teacher.logits[..., teacher_index]
        pairs = match_queries(self.matcher, student, Predictions(logits, teacher.boxes), objects)
        return pairs._replace(
            student_logits=pairs.student_logits[:, student_index], teacher_logits=pairs.teacher_logits[:, student_index]
        )


def match_queries(
    matcher: HungarianMatcher, student: Predictions, teacher: Predictions, objects: PaddedTargets
) -> Matched:
    """Pair the teacher's query of each object with the student's query of every decoder layer.

    The student's queries are those that the detection loss trains to detect the object. Matching with the teacher's
    predictions instead would pull other queries to the same objects, against the detection loss (see
    docs/distillation.md for figures). A pair is weighted by how good the teacher's prediction is: its score for the
    object's class times the IoU of its box.
    """
    logits, boxes = teacher.logits.detach(), teacher.boxes.detach().float()
    if isinstance(student, TrainingPredictions):
        student_logits, student_boxes = student.layer_logits, student.layer_boxes
    else:
        student_logits, student_boxes = student.logits[None], student.boxes[None]
    student_matches, teacher_matches = matcher.match(
        [(student_logits.detach(), student_boxes.detach()), (logits[None], boxes[None])], objects
    )
    query_of = torch.full_like(objects.labels, -1)  # teacher query per object; it may have fewer queries than objects
    query_of[teacher_matches.image, teacher_matches.target] = teacher_matches.query
    stage, image, target = student_matches.stage, student_matches.image, student_matches.target
    query, rows = query_of[image, target], (stage, image, student_matches.query)
    has_teacher = query >= 0  # selecting by it would make the host wait for the device; the others weigh nothing
    query = query.clamp(min=0)
    scores = logits[image, query, objects.labels[image, target]].float().sigmoid() * has_teacher
    overlap = box_iou(cxcywh_to_xyxy(boxes[image, query]), cxcywh_to_xyxy(objects.boxes[image, target]))
    return Matched(
        student_logits[rows], student_boxes[rows], logits[image, query], boxes[image, query], scores * overlap
    )
