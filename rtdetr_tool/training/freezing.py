"""Freeze parts of a detector: `freeze_norm` and `freeze_at` of its family (or the reference recipe), `train.freeze`,
and the backbone of adapters (`model.backbone_lora`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rtdetr_tool.catalog import FROM_BACKBONE, FROM_DETECTOR
from rtdetr_tool.models.adapters import add_adapters
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.spec import ExperimentSpec, ModelSpec

_STAGES = ("the stem", "the stem and the first stage", "the stem and the first two stages")


def resolve_freezing(spec: ExperimentSpec, pretrained: bool = False) -> ExperimentSpec:
    """Fill in the family's `freeze_norm` and `freeze_at` from the reference recipe where they are not set.

    Args:
        pretrained: the run starts from the weights of a whole detector that is not in the spec.
    """
    model = spec.model
    section = freezing_section(model)
    if section is None:
        return spec
    start = FROM_BACKBONE if model.pretrained_backbone_path else None
    if pretrained or spec.train.pretrained_model_path:
        start = FROM_DETECTOR
    frozen = start is not None and model.family.is_frozen_by_recipe(model, start)
    resolved: dict[str, Any] = {
        "freeze_norm": frozen if section.freeze_norm is None else section.freeze_norm,
        "freeze_at": (0 if frozen else -1) if section.freeze_at is None else section.freeze_at,
    }
    if name := model.family.freezing:
        resolved = {name: replace(section, **resolved)}
    return replace(spec, model=replace(model, **resolved))


def freezing_section(model: ModelSpec) -> Any:
    """The part of `model` that has the fields `freeze_norm` and `freeze_at`; None if the family has none."""
    name = model.family.freezing
    return None if name is None else getattr(model, name) if name else model


def freeze(detector: Detector, spec: ExperimentSpec, unresolved: ExperimentSpec) -> str:
    """Freeze the parts that the spec selects. Returns a description for the log.

    Args:
        spec: the spec after `resolve_freezing`.
        unresolved: the spec before it.

    Raises:
        UserError: the backbone does not have these parts, or no module has a name in `train.freeze`.
    """
    model, parts, by_recipe = spec.model, [], False
    section = freezing_section(model)
    if not model.train_backbone:
        backbone = detector.backbone
        complete = all(backbone.is_published(name) for name, _ in backbone.named_parameters())
        rest = "" if complete else " except for layers that are not in published weights"
        parts.append(f"the backbone{rest} (model.train_backbone: false)")
    elif section is not None:
        prefix = f"model.{model.family.freezing}." if model.family.freezing else "model."
        stages = -1 if section.freeze_at is None else section.freeze_at
        count = detector.freeze_backbone(bool(section.freeze_norm), stages)
        if stages >= 0:
            parts.append(f"{_stages(stages)} of the backbone ({prefix}freeze_at: {section.freeze_at})")
        if section.freeze_norm:
            parts.append(f"the {count} batch norms of the backbone ({prefix}freeze_norm: true)")
        given = freezing_section(unresolved.model)
        by_recipe = bool(parts) and None in (given.freeze_norm, given.freeze_at)
    detector.freeze(spec.train.freeze or ())
    parts += [f"{name} (train.freeze)" for name in spec.train.freeze or ()]
    if model.backbone_lora.enabled:
        parts.append(_with_adapters(detector, spec))
    if not parts:
        return "Frozen: nothing; training all weights"
    recipe = f" (fields that are not set follow the reference recipe of {model.family.variant(model)})"
    return f"Frozen: {', '.join(parts)}{recipe if by_recipe else ''}"


def _with_adapters(detector: Detector, spec: ExperimentSpec) -> str:
    """Add the adapters of the backbone. Returns a description."""
    lora = spec.model.backbone_lora
    frozen = [name for name in spec.train.freeze or () if name != "backbone"]
    layers = add_adapters(detector, lora.rank, lora.alpha, lora.dora, lora.modules, frozen)
    trained = sum(parameter.numel() for parameter in detector.backbone.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in detector.backbone.parameters())
    return (
        f"the backbone except {'DoRA' if lora.dora else 'LoRA'} adapters of rank {lora.rank} in {len(layers)} layers "
        f"(model.backbone_lora: {trained:,} of {total:,} parameters)"
    )


def _stages(at: int) -> str:
    return _STAGES[at] if at < len(_STAGES) else f"the stem and the first {at} stages"
