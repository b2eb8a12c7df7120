"""Arguments of `train` that are not fields of the spec."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rtdetr_tool.errors import UserError


@dataclass(frozen=True)
class TrainArguments:
    """Arguments of `train` that are not fields of the spec."""

    keywords: dict[str, Any]  # for the spec
    callbacks: Sequence[Any]
    class_names: list[str] | None = None  # must match the names in the data
    run_test: bool = False


def read_train_arguments(
    callbacks: Sequence[Any] | Mapping[str, Any], keywords: Mapping[str, Any], deprecated: Mapping[str, str]
) -> TrainArguments:
    """Separate these arguments from the keywords; DeprecationWarning for those without effect.

    Args:
        deprecated: keyword -> reason why it has no effect.
    """
    if isinstance(callbacks, Mapping):
        warn_about_callbacks(callbacks)
        callbacks = ()
    kept = dict(keywords)
    for name, reason in deprecated.items():
        if name in kept:
            del kept[name]
            _warn(name, reason)
    names = kept.get("class_names")
    if names is not None and not (isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)):
        raise UserError(
            f"class_names: {names!r} is invalid; expected a list of names, or None to use those of the data"
        )
    return TrainArguments(kept, callbacks, None if names is None else list(names), bool(kept.get("run_test")))


def warn_about_callbacks(callbacks: Mapping[str, Any]) -> None:
    """DeprecationWarning for a dictionary of functions, which is ignored."""
    if any(callbacks.values()):
        _warn("callbacks", "a dictionary of functions is ignored; pass a list of pytorch_lightning callbacks")


def check_class_names(given: Sequence[str], names: Sequence[str]) -> None:
    """UserError if the user's class names are not those of the data, in index order."""
    if list(given) != list(names):
        raise UserError(
            f"class_names: {list(given)} is invalid; expected the names in the data, {list(names)}. Rename the "
            "categories in the annotation files to change them"
        )


def _warn(name: str, reason: str) -> None:
    warnings.warn(f"train: {name} has no effect: {reason}", DeprecationWarning, stacklevel=4)
