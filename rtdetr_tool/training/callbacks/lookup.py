"""Find a callback of a trainer by its class."""

from __future__ import annotations

from typing import TypeVar

from pytorch_lightning import Callback, Trainer

CallbackT = TypeVar("CallbackT", bound=Callback)


def find_callback(trainer: Trainer, kind: type[CallbackT]) -> CallbackT | None:
    """The first callback of this class, or None if the trainer has none."""
    callbacks: list[Callback] = vars(trainer)["callbacks"]  # Lightning sets the attribute without declaring it
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)
