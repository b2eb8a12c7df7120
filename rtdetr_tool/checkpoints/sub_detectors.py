"""Which sub-detectors of a weights file a spec may ask for.

Weights trained with `train.supernet` run with every value that its section lists, and with fewer decoder layers also
without it, because each layer has been supervised; then with a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from rtdetr_tool.checkpoints.recorded_fields import value_at
from rtdetr_tool.families import family_of
from rtdetr_tool.spec import ModelSpec
from rtdetr_tool.spec.convert import from_plain
from rtdetr_tool.spec.sub_detectors import size_of
from rtdetr_tool.spec.supernet import SupernetSpec

SIZE = "dataset.augmentation.eval_spatial_size"
LAYERS = "decoder_layers"


def recorded_supernet(meta: Mapping[str, Any]) -> SupernetSpec | None:
    """The `train.supernet` section that a file was trained with; None if it was not enabled."""
    section = value_at(meta, "spec.train.supernet")
    supernet = from_plain(SupernetSpec, dict(section), []) if isinstance(section, Mapping) else SupernetSpec()
    return supernet if supernet.enabled else None


def trained_sizes(meta: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(height, width) of the inputs that a file was trained for in addition to the recorded one."""
    supernet = recorded_supernet(meta)
    return [] if supernet is None else [size_of(entry) for entry in supernet.resolution if _is_size(entry)]


def trained_note(name: str, meta: Mapping[str, Any]) -> str:
    """The other values of a spec field that the weights were trained for, for messages."""
    supernet, family = recorded_supernet(meta), family_of(value_at(meta, "spec.model.arch"))
    for choice, field in family.sub_fields.items():
        if supernet is not None and name == f"model.{field.name}" and getattr(supernet, choice):
            values = ", ".join(str(number + field.offset) for number in getattr(supernet, choice))
            return f" (trained with train.supernet.{choice}, so it can also be {values})"
    return ""


def is_possible(name: str, value: Any, meta: Mapping[str, Any]) -> Literal["trained", "untrained"] | None:
    """Whether weights can run with this value of a spec field instead of the recorded one; None if not.

    Args:
        name: dotted, such as `model.eval_idx`.
        meta: what the weights file records.
    """
    model = value_at(meta, "spec.model")
    if not isinstance(model, Mapping):
        return None
    family = family_of(model.get("arch"))
    fields = {f"model.{field.name}": (choice, field.offset) for choice, field in family.sub_fields.items()}
    if name not in fields or type(value) is not int:
        return None
    choice, offset = fields[name]
    spec = from_plain(ModelSpec, dict(model), [])
    number, whole = value - offset, family.whole_detector(spec)[choice]
    if family.fixed_reason(spec, choice) or (offset and value < 0):
        return None
    supernet = recorded_supernet(meta)
    if number == whole or (supernet is not None and number in getattr(supernet, choice)):
        return "trained"
    return "untrained" if choice == LAYERS and 0 < number < whole else None


def _is_size(entry: Any) -> bool:
    sides = entry if isinstance(entry, (list, tuple)) else [entry, entry]
    return len(sides) == 2 and all(type(side) is int for side in sides)
