"""Weights of classes in the class loss (`train.class_weights`)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import torch
from torch import Tensor

from rtdetr_tool.class_names import spelling_hint
from rtdetr_tool.errors import UserError
from rtdetr_tool.losses.criterion import SetCriterion
from rtdetr_tool.messages import first_of
from rtdetr_tool.ops.classes import ClassMap


def set_class_weights(
    criterion: SetCriterion, weights: Mapping[str, float] | None, class_map: ClassMap, num_classes: int
) -> None:
    """Weight the class loss of a criterion by class name.

    Raises:
        UserError: a name is not a class, or there is no class loss.
    """
    if not weights:
        return
    if not criterion.has_class_loss:
        raise UserError("train.class_weights is not supported without a class loss; add one to model.loss_types")
    criterion.class_weights = weights_by_index(weights, class_map, num_classes)


def weights_by_index(weights: Mapping[str, float], class_map: ClassMap, num_classes: int) -> Tensor:
    """The weight of each class logit [num_classes]; 1 without a name in `weights`.

    Raises:
        UserError: a name is not a class.
    """
    index_of = {entry.name: entry.index for entry in class_map.entries}
    if unknown := [name for name in weights if name not in index_of]:
        near = difflib.get_close_matches(unknown[0], index_of, n=1, cutoff=0.6)
        hint = spelling_hint(unknown, index_of) or (f" (did you mean {near[0]!r}?)" if near else "")
        raise UserError(
            f"train.class_weights: {first_of(map(repr, unknown), 4)} not among the classes{hint}; expected names of "
            f"{first_of(map(repr, index_of), 20)}"
        )
    rows = torch.ones(num_classes)
    for name, weight in weights.items():
        rows[index_of[name]] = weight
    return rows
