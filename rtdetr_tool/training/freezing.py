"""Freeze parts of a detector: `model.freeze_norm` and `model.freeze_at` (or the reference recipe), `train.freeze`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rtdetr_tool.catalog import FREEZING, FROM_BACKBONE, FROM_DETECTOR
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.spec import ExperimentSpec
from rtdetr_tool.spec.queries import reads

_STAGES = ("the stem", "the stem and the first stage", "the stem and the first two stages")


def resolve_freezing(spec: ExperimentSpec, pretrained: bool = False) -> ExperimentSpec:
    """Fill in `model.freeze_norm` and `model.freeze_at` from the reference recipe where they are not set.

    Args:
        pretrained: the run starts from the weights of a whole detector that is not in the spec.
    """
    model = spec.model
    start = FROM_BACKBONE if model.pretrained_backbone_path else None
    if pretrained or spec.train.pretrained_model_path:
        start = FROM_DETECTOR
    frozen = reads(model.arch, "model.freeze_norm") and model.backbone in FREEZING.get(start or "", ())
    norm = frozen if model.freeze_norm is None else model.freeze_norm
    at = (0 if frozen else -1) if model.freeze_at is None else model.freeze_at
    resolved: dict[str, Any] = {"freeze_norm": norm, "freeze_at": at}
    return replace(spec, model=replace(model, **resolved))


def freeze(detector: Detector, spec: ExperimentSpec, unresolved: ExperimentSpec) -> str:
    """Freeze the parts that the spec selects. Returns a description for the log.

    Args:
        spec: the spec after `resolve_freezing`.
        unresolved: the spec before it.

    Raises:
        UserError: the backbone does not have these parts, or no module has a name in `train.freeze`.
    """
    model, parts = spec.model, []
    if not model.train_backbone:
        parts.append("the backbone (model.train_backbone: false)")
    elif reads(model.arch, "model.freeze_norm"):
        stages = -1 if model.freeze_at is None else model.freeze_at
        count = detector.freeze_backbone(bool(model.freeze_norm), stages)
        if stages >= 0:
            parts.append(f"{_stages(stages)} of the backbone (model.freeze_at: {model.freeze_at})")
        if model.freeze_norm:
            parts.append(f"the {count} batch norms of the backbone (model.freeze_norm: true)")
    unset = None in (unresolved.model.freeze_norm, unresolved.model.freeze_at)
    by_recipe = bool(parts) and model.train_backbone and unset
    detector.freeze(spec.train.freeze or ())
    parts += [f"{name} (train.freeze)" for name in spec.train.freeze or ()]
    if not parts:
        return "Frozen: nothing; training all weights"
    recipe = f" (fields that are not set follow the reference recipe of {model.backbone})" if by_recipe else ""
    return f"Frozen: {', '.join(parts)}{recipe}"


def _stages(at: int) -> str:
    return _STAGES[at] if at < len(_STAGES) else f"the stem and the first {at} stages"
