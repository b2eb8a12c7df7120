"""The distillation loss: what is bound together of a student and a teacher, and how far apart it is.

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
from rtdetr_tool.ops.structures import Predictions, Target

_ABSENT = -100.0  # logit of a class that the teacher does not know


class Queries(NamedTuple):
    """What an RT-DETR teacher's decoder starts from."""

    content: Tensor  # [B, Q, C]
    scores: Tensor  # [B, Q] 0..1, of the best class
    boxes: Tensor  # [B, Q, 4] cxcywh 0..1


@dataclass
class Outputs:
    """What one forward pass of a detector gave: outputs of modules by name, and its predictions."""

    features: dict[str, list[Tensor]]
    predictions: Predictions
    queries: Queries | None = None
    in_query_space: dict[str, list[Tensor]] = field(default_factory=dict)  # maps as wide as queries, where they differ


class Matched(NamedTuple):
    """Pairs of queries of student and teacher that are matched with the same object."""

    student_logits: Tensor  # [P, C]
    student_boxes: Tensor  # [P, 4] cxcywh 0..1
    teacher_logits: Tensor
    teacher_boxes: Tensor
    weight: Tensor  # [P] 0..1, how well the teacher finds the object


class Alignment(nn.Module):
    """Brings the student's tensors to the shape of the teacher's.

    Where the channels differ, a 1x1 projection learned with the student (a linear layer for tokens); where the sizes of
    maps differ, bilinear interpolation.

    Args:
        channels: (student's, teacher's, axes of the tensor) of each level.
    """

    def __init__(self, channels: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Identity() if own == wanted else nn.Conv2d(own, wanted, 1) if axes == 4 else nn.Linear(own, wanted)
            for own, wanted, axes in channels
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Tensor]:
        aligned = [project(level) for project, level in zip(self.projections, student, strict=True)]
        return [
            F.interpolate(own, size=wanted.shape[-2:], mode="bilinear", align_corners=False)
            if wanted.ndim == 4 and own.shape[-2:] != wanted.shape[-2:]
            else own
            for own, wanted in zip(aligned, teacher, strict=True)
        ]


class FeatureBinding(nn.Module):
    """Outputs of one module of the student and one of the teacher, the distance summed over their levels.

    L1 and L2 are means over all elements, KL compares distributions (`imitation.relative_entropy`). IOU is the
    target-aware imitation of DETRDistill (Chang et al. 2023, arXiv:2211.10156) in the form of NVIDIA TAO::

        quality_n = score_n * max over objects g of IoU(box_n, g)       score_n without objects
        m(p)      = max(sum_n quality_n * cos(query_n, teacher(p)), 0.01) / its largest value in the image
        loss      = sum over levels of mean((m * student - m * teacher)^2)

    with the teacher's selected queries n (content [B, Q, C], score 0..1, box cxcywh 0..1 like the objects') and its
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
        wanted = teacher.features[self.teacher]
        given = self.alignment(student.features[self.student], wanted)
        if self.criterion == "IOU":
            losses = self._target_aware(given, wanted, teacher, targets)
        elif self.criterion == "KL":
            losses = [relative_entropy(a, b, self.temperature) for a, b in zip(given, wanted, strict=True)]
        else:
            distance = mean_absolute if self.criterion == "L1" else mean_square
            losses = [distance(a, b) for a, b in zip(given, wanted, strict=True)]
        return torch.stack(losses).sum()

    def _target_aware(
        self, given: Sequence[Tensor], wanted: Sequence[Tensor], teacher: Outputs, targets: PaddedTargets
    ) -> list[Tensor]:
        queries = teacher.queries
        quality = query_quality(queries.scores, queries.boxes, targets)
        compared = teacher.in_query_space.get(self.teacher, wanted)
        masks = [target_mask(level, queries.content, quality) for level in compared]
        return [masked_square(a, b, mask) for a, b, mask in zip(given, wanted, masks, strict=True)]


class PredictionBinding(nn.Module):
    """`pred_logits` or `pred_boxes` of matched queries, averaged over the pairs with `Matched.weight` as weights.

    Queries have no order that student and teacher share, so they are matched, for every decoder layer of the student,
    as in the logits distillation of DETRDistill (Chang et al. 2023, arXiv:2211.10156). Ours: not with each other, but
    both with the objects, see `match_queries`.
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
    """All bindings of a run: `loss_distillation_<student's module>_<criterion>` of each (weighted) and their sum.

    Args:
        classes: (student's, teacher's class index) of every class that both know; None = the same logits.
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
        own, theirs = (list(indices) for indices in zip(*self.classes, strict=True))
        logits = teacher.logits.new_full((*teacher.logits.shape[:2], student.logits.shape[-1]), _ABSENT)
        logits[..., own] = teacher.logits[..., theirs]
        found = match_queries(self.matcher, student, Predictions(logits, teacher.boxes), objects)
        return found._replace(student_logits=found.student_logits[:, own], teacher_logits=found.teacher_logits[:, own])


def match_queries(
    matcher: HungarianMatcher, student: Predictions, teacher: Predictions, objects: PaddedTargets
) -> Matched:
    """For each object the teacher's query and, of every decoder layer, the student's.

    The student's are those that the detection loss trains to find the object. Matched with the teacher's predictions
    instead, other queries would be pulled to the same objects, against the detection loss (docs/distillation.md has the
    figures). A pair counts as much as the teacher is right: its score of the object's class times the IoU of its box.
    """
    logits, boxes = teacher.logits.detach(), teacher.boxes.detach().float()
    layers = (student.layer_logits, student.layer_boxes)
    own_logits, own_boxes = (student.logits[None], student.boxes[None]) if layers[0] is None else layers
    found = matcher(own_logits.detach(), own_boxes.detach(), objects)
    theirs = matcher(logits[None], boxes[None], objects)
    query_of = torch.full_like(objects.labels, -1)  # the teacher's, of each object; it may have fewer than objects
    query_of[theirs.image, theirs.target] = theirs.query
    query = query_of[found.image, found.target]
    pair = query >= 0
    stage, image, query, target = (index[pair] for index in (found.stage, found.image, query, found.target))
    own = (stage, image, found.query[pair])
    scores = logits[image, query, objects.labels[image, target]].float().sigmoid()
    overlap = box_iou(cxcywh_to_xyxy(boxes[image, query]), cxcywh_to_xyxy(objects.boxes[image, target]))
    return Matched(own_logits[own], own_boxes[own], logits[image, query], boxes[image, query], scores * overlap)
