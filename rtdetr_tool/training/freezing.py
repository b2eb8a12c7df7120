"""What of a backbone a run does not train: `model.freeze_norm` and `model.freeze_at`, or the reference recipe."""

from __future__ import annotations

from dataclasses import replace

from rtdetr_tool.catalog import FREEZING, FROM_BACKBONE, FROM_DETECTOR
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.spec import ExperimentSpec

_STAGES = ("the stem", "the stem and the first stage", "the stem and the first two stages")


def with_recipe(spec: ExperimentSpec, pretrained: bool = False) -> ExperimentSpec:
    """The spec with the reference recipe in place of null in `model.freeze_norm` and `model.freeze_at`.

    Args:
        pretrained: the run starts from the weights of a whole detector although the spec names none.
    """
    model = spec.model
    start = FROM_BACKBONE if model.pretrained_backbone_path else None
    if pretrained or spec.train.pretrained_model_path:
        start = FROM_DETECTOR
    frozen = model.family.reads("freeze_norm") and model.backbone in FREEZING.get(start, ())
    norm = frozen if model.freeze_norm is None else model.freeze_norm
    at = (0 if frozen else -1) if model.freeze_at is None else model.freeze_at
    return replace(spec, model=replace(model, freeze_norm=norm, freeze_at=at))


def freeze(detector: Detector, spec: ExperimentSpec, asked: ExperimentSpec) -> str:
    """Freeze what `spec` (with its recipe) says, and tell what that is.

    Args:
        asked: the spec before `with_recipe`.

    Raises:
        UserError: the backbone has no such parts, or there is no module of a name in `train.freeze`.
    """
    model, parts = spec.model, []
    if not model.train_backbone:
        parts.append("the backbone (model.train_backbone: false)")
    elif model.family.reads("freeze_norm"):
        count = detector.freeze_backbone(model.freeze_norm, model.freeze_at)
        if model.freeze_at >= 0:
            parts.append(f"{_stages(model.freeze_at)} of the backbone (model.freeze_at: {model.freeze_at})")
        if model.freeze_norm:
            parts.append(f"the {count} batch norms of the backbone (model.freeze_norm: true)")
    by_recipe = bool(parts) and model.train_backbone and None in (asked.model.freeze_norm, asked.model.freeze_at)
    detector.freeze(spec.train.freeze or ())
    parts += [f"{name} (train.freeze)" for name in spec.train.freeze or ()]
    if not parts:
        return "Frozen: nothing, every weight is trained."
    recipe = f" The fields that are not set follow the reference recipe of {model.backbone}." if by_recipe else ""
    return f"Frozen: {', '.join(parts)}.{recipe}"


def _stages(at: int) -> str:
    return _STAGES[at] if at < len(_STAGES) else f"the stem and the first {at} stages"
