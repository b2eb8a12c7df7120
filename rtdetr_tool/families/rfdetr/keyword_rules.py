"""Rules of keywords of Roboflow's package: from the value of a keyword to spec fields."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any

from rtdetr_tool.errors import UserError
from rtdetr_tool.families.keywords import Rule, Settings
from rtdetr_tool.messages import shortened
from rtdetr_tool.spec.train import OPTIMIZER_PREFIX, SCHEDULER_PREFIX


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


_FLIPS = {"HorizontalFlip": "flip_prob", "VerticalFlip": "vertical_flip_prob"}


def aug_config(config: Any) -> Settings:
    """Transforms by name with their arguments; they replace the flips of the recipe."""
    if config is None:
        return {}
    if not isinstance(config, dict) or not all(isinstance(arguments, dict) for arguments in config.values()):
        raise UserError(
            f"aug_config: {shortened(config)} is invalid; expected names of transforms with their arguments, such as "
            "{'HorizontalFlip': {'p': 0.5}}, or {} for no flip"
        )
    fields: Settings = {"dataset.augmentation.flip_prob": 0.0}
    others = []
    for name, arguments in config.items():
        if name in _FLIPS and set(arguments) <= {"p"}:
            fields[f"dataset.augmentation.{_FLIPS[name]}"] = arguments.get("p", 0.5)
        else:
            others.append(_albumentation(name, arguments))
    return {**fields, **({"dataset.augmentation.albumentations": others} if others else {})}


def _albumentation(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A transform as Albumentations' `to_dict` writes it; parts of a composition are {name: arguments}."""
    entry = {"__class_fullname__": name, "p": 0.5, **arguments}
    if isinstance(parts := entry.get("transforms"), list):
        entry["transforms"] = [
            _albumentation(*next(iter(part.items()))) if isinstance(part, dict) and len(part) == 1 else part
            for part in parts
        ]
    return entry


def scheduler(name: Any) -> Settings:
    if not isinstance(name, str):
        raise UserError("lr_scheduler: expected a name; define your own schedule in a DetectorModule")
    if name.startswith(SCHEDULER_PREFIX):
        return {"train.optim.lr_scheduler": name}
    kind = {"cosine": "Cosine", "step": "MultiStep"}.get(name.strip().lower(), name)
    if kind not in ("Cosine", "MultiStep", "StepLR"):
        raise UserError(
            f"lr_scheduler: {name!r} is not supported; expected 'step', 'cosine', 'StepLR' or a dotted name from "
            "torch.optim.lr_scheduler. Override DetectorModule.configure_optimizers for other schedules."
        )
    return {"train.optim.lr_scheduler": kind}


def scheduler_kwargs(values: Any) -> Settings:
    """`lr_drop` and `min_factor` belong to the schedules `step` and `cosine`, all others to one by dotted name."""
    values = _keywords("lr_scheduler_kwargs", values)
    fields: Settings = {}
    if "lr_drop" in values:
        fields["train.optim.lr_steps"] = [values.pop("lr_drop")]
    if "min_factor" in values:
        fields["train.optim.lr_min_factor"] = values.pop("min_factor")
    return {**fields, **({"train.optim.lr_scheduler_kwargs": values} if values else {})}


def optimizer(name: Any) -> Settings:
    known = {"adamw": "AdamW", "sgd": "SGD", "torch.optim.adamw": "AdamW", "torch.optim.sgd": "SGD"}
    if isinstance(name, str) and name.strip().lower() in known:
        return {"train.optim.optimizer": known[name.strip().lower()]}
    if isinstance(name, str) and name.startswith(OPTIMIZER_PREFIX):
        return {"train.optim.optimizer": name}
    raise UserError(
        f"optimizer: {name!r} is not supported; expected 'adamw', 'sgd' or the dotted name of one in torch.optim. "
        "Override DetectorModule.configure_optimizers for other optimizers."
    )


def optimizer_kwargs(values: Any) -> Settings:
    values = _keywords("optimizer_kwargs", values)
    fields = {f"train.optim.{name}": values.pop(name) for name in ("lr", "weight_decay") if name in values}
    return {**fields, **({"train.optim.optimizer_kwargs": values} if values else {})}


def _keywords(where: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UserError(f"{where}: {values!r} is invalid; expected a dictionary of keyword arguments")
    return dict(values)
