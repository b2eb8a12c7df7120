"""`train.preset`: values for the fields of the `train` section that the spec does not set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rtdetr_tool.spec.train import TrainSpec

# field of the `train` section -> value of the preset `fast`, and what the other value costs on a GPU
FAST: dict[str, tuple[Any, str]] = {
    "precision": ("auto", "no mixed precision: twice the memory traffic, few tensor cores"),
    "activation_checkpoint": (False, "the backbone runs twice, about 17 % more computation, to save memory"),
    "cudnn.deterministic": (False, "cuDNN skips its faster algorithms, so that runs are reproducible"),
    "cudnn.benchmark": (True, "cuDNN does not time its algorithms"),
    "tf32": ("on", "float32 matrix products without tensor cores"),
}


def with_preset(data: Mapping[str, Any]) -> dict[str, Any]:
    """Spec data with the values of `train.preset` for the fields that are not set."""
    train = data.get("train")
    if not isinstance(train, Mapping) or train.get("preset") != "fast":
        return dict(data)
    filled = dict(train)
    for name, (value, _) in FAST.items():
        section, _, field = name.rpartition(".")
        if not section:
            filled.setdefault(field, value)
        elif isinstance(filled.get(section, {}), Mapping):  # otherwise a separate error
            filled[section] = {field: value, **filled.get(section, {})}
    return {**data, "train": filled}


def overridden_note(explicit: Mapping[str, Any]) -> str | None:
    """One line about the fields of the preset that the spec sets to other values, which take precedence."""
    train = explicit.get("train")
    if not isinstance(train, Mapping) or train.get("preset") != "fast":
        return None
    values = {name: _given(train, name) for name in FAST}
    kept = [
        f"train.{name} {str(value).lower()}" for name, value in values.items() if value not in (None, FAST[name][0])
    ]
    if not kept:
        return None
    return f"train.preset fast does not change {', '.join(kept)}: the spec sets them; remove them to use the preset"


def _given(train: Mapping[str, Any], name: str) -> Any:
    section, _, field = name.rpartition(".")
    inner = train.get(section) if section else train
    return inner.get(field) if isinstance(inner, Mapping) else None


def slow_settings(train: TrainSpec) -> list[str]:
    """The fields that slow down training on a GPU, with their values and cost."""
    return [f"train.{name}={str(value).lower()} ({FAST[name][1]})" for name, value in _slow(train)]


def _slow(train: TrainSpec) -> Iterator[tuple[str, Any]]:
    if train.precision == "fp32":
        yield "precision", "fp32"
        if train.tf32 != "on":
            yield "tf32", train.tf32
    if train.activation_checkpoint:
        yield "activation_checkpoint", True
    if train.cudnn.deterministic:
        yield "cudnn.deterministic", True
    elif not train.cudnn.benchmark:
        yield "cudnn.benchmark", False


def slow_line(train: TrainSpec) -> str | None:
    """A log line about the slow settings of a run on a GPU; None if there are none."""
    settings = slow_settings(train)
    if not settings:
        return None
    unset = "" if train.preset == "fast" else " and set train.preset to fast"
    return (
        f"Settings that slow down training on a GPU: {'; '.join(settings)}. To train faster, remove them from the "
        f"spec{unset}."
    )
