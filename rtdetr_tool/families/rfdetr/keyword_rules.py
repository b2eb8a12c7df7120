"""Rules of keywords of Roboflow's package: from the value of a keyword to spec fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from rtdetr_tool.errors import UserError
from rtdetr_tool.families.keywords import Rule, Settings

FieldOf = Callable[[Any], tuple[str, Any]]  # a value -> the spec field that it sets, and its value there


def only(name: str, accepted: dict[Any, Settings], alternative: str) -> Rule:
    """A rule that maps the accepted values to fields, and refuses any other."""

    def rule(value: Any) -> Settings:
        for known, fields in accepted.items():
            if value == known and type(value) is type(known):
                return dict(fields)
        names = ", ".join(map(repr, accepted))
        raise UserError(f"{name}: {value!r} is not supported; expected one of {names}. {alternative}")

    return rule


def if_given(field: str) -> Rule:
    """A rule for a field whose None means the default."""
    return lambda value: {} if value is None else {field: value}


def notes(value: Any) -> Settings:
    if value is None or isinstance(value, str):
        return {"train.notes": value}
    try:
        return {"train.notes": json.dumps(value)}
    except (TypeError, ValueError) as error:
        raise UserError(f"notes: {type(value).__name__} is invalid; expected text or a JSON value ({error})") from None


def multi_scale(mode: Any) -> Settings:
    mode = mode.value if isinstance(mode, Enum) else mode
    if mode in (True, "per-batch"):
        return {}
    if mode in (False, "off"):
        return {"dataset.augmentation.multi_scales": []}
    raise UserError(f"multi_scale: {mode!r} is not supported; expected 'per-batch' or 'off' (one size per batch)")


def aug_config(config: Any) -> Settings:
    if config is None:
        return {}
    flip = config.get("HorizontalFlip") if isinstance(config, dict) and set(config) <= {"HorizontalFlip"} else False
    if isinstance(config, dict) and not config:
        return {"dataset.augmentation.flip_prob": 0.0}
    if isinstance(flip, dict) and set(flip) <= {"p"}:
        return {"dataset.augmentation.flip_prob": flip.get("p", 0.5)}
    raise UserError(
        "aug_config: expected {} (no flip) or {'HorizontalFlip': {'p': ...}}; Albumentations is not used. Set "
        "distortion_prob, zoom_out_prob, iou_crop_prob, scale_jitter_prob and flip_prob instead."
    )


def scheduler(name: Any) -> Settings:
    if not isinstance(name, str):
        raise UserError("lr_scheduler: expected 'step' or 'cosine'; pass a schedule of your own in a DetectorModule")
    kind = {"cosine": "Cosine", "step": "MultiStep"}.get(name.strip().lower(), name)
    if kind not in ("Cosine", "MultiStep", "StepLR"):
        raise UserError(
            f"lr_scheduler: {name!r} is not supported; expected 'step', 'cosine' or 'StepLR'. Override "
            "DetectorModule.configure_optimizers for other schedules."
        )
    return {"train.optim.lr_scheduler": kind}


def scheduler_kwargs(values: Any) -> Settings:
    fields: dict[str, FieldOf] = {
        "lr_drop": lambda v: ("train.optim.lr_steps", [v]),
        "min_factor": lambda v: ("train.optim.lr_min_factor", v),
    }
    _check_names("lr_scheduler_kwargs", values, fields)
    return dict(fields[name](value) for name, value in values.items())


def optimizer(name: Any) -> Settings:
    known = {"adamw": "AdamW", "sgd": "SGD", "torch.optim.adamw": "AdamW", "torch.optim.sgd": "SGD"}
    if not isinstance(name, str) or name.strip().lower() not in known:
        raise UserError(
            f"optimizer: {name!r} is not supported; expected 'adamw' or 'sgd' (or torch.optim.AdamW, torch.optim.SGD). "
            "Override DetectorModule.configure_optimizers for other optimizers."
        )
    return {"train.optim.optimizer": known[name.strip().lower()]}


def optimizer_kwargs(values: Any) -> Settings:
    fields: dict[str, FieldOf] = {
        "lr": lambda v: ("train.optim.lr", v),
        "weight_decay": lambda v: ("train.optim.weight_decay", v),
        "momentum": lambda v: ("train.optim.momentum", v),
        "betas": lambda v: ("train.optim.momentum", v[0]),
    }
    _check_names("optimizer_kwargs", values, fields)
    if "betas" in values and (len(values["betas"]) != 2 or values["betas"][1] != 0.999):
        raise UserError("optimizer_kwargs: betas must be (beta1, 0.999); only beta1 can be set")
    return dict(fields[name](value) for name, value in values.items())


def _check_names(where: str, values: Any, fields: Mapping[str, FieldOf]) -> None:
    unknown = sorted(set(values) - set(fields)) if isinstance(values, dict) else [repr(values)]
    if unknown:
        raise UserError(f"{where}: {', '.join(unknown)} is not supported; expected {', '.join(fields)}")
