"""The smallest score of each class in inference: from the spec, or from an evaluation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from rtdetr_tool.errors import UserError
from rtdetr_tool.files import parse_json, read_limited
from rtdetr_tool.messages import first_of
from rtdetr_tool.ops.classes import ClassMap

logger = logging.getLogger(__name__)

_MAX_BYTES = 64 << 20


class Section(Protocol):
    """The section of a command that only returns detections with sufficient scores."""

    @property
    def conf_threshold(self) -> float: ...

    @property
    def class_thresholds(self) -> dict[str, float] | None: ...

    @property
    def thresholds_from(self) -> str | None: ...


def score_thresholds(section: Section, class_map: ClassMap, command: str = "inference") -> Tensor:
    """Thresholds [C] by class index; `command` is the name of the section.

    Raises:
        UserError: a class that the model does not have, a score outside 0..1, or a file without thresholds.
    """
    thresholds = torch.full((class_map.num_classes,), float(section.conf_threshold))
    index_of = {entry.name: entry.index for entry in class_map.entries}
    file = section.thresholds_from
    measured = _measured(file, f"{command}.thresholds_from") if file else {}
    given = section.class_thresholds or {}
    for source, values in ((f"{command}.thresholds_from", measured), (f"{command}.class_thresholds", given)):
        unknown = [name for name in values if name not in index_of]
        if unknown:
            raise UserError(
                f"{source}: {first_of(unknown, 5)} is not a class of the model; expected {first_of(list(index_of), 12)}"
            )
        for name, value in values.items():
            if not 0 <= value <= 1:
                raise UserError(f"{source}.{name}: {value} is invalid; expected a score from 0 to 1")
            thresholds[index_of[name]] = value
    if measured or given:
        shown = [f"{entry.name} {float(thresholds[entry.index]):.2f}" for entry in class_map.entries]
        logger.info("Score thresholds: %s", first_of(shown, 20))
    return thresholds


def _measured(path: str, where: str) -> dict[str, float]:
    """The thresholds with the best F1 by class name; classes without objects have none."""
    try:
        content = parse_json(read_limited(path, _MAX_BYTES))
    except FileNotFoundError:
        raise UserError(f"{where}: {path} does not exist; expected the results.json of an evaluation") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: {path} cannot be read: {error}") from None
    rows: Any = content.get("per_class") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "name" in row for row in rows):
        raise UserError(f"{where}: {path} has no per_class list; expected the results.json of an evaluation")
    measured = {str(row["name"]): _threshold(row) for row in rows}
    thresholds = {name: value for name, value in measured.items() if value is not None}
    if not thresholds:
        raise UserError(
            f"{where}: {path} has no threshold for any class: it is from an older version, or the evaluation had no "
            "objects. Run `rtdetr evaluate` again"
        )
    return thresholds


def _threshold(row: Mapping[str, Any]) -> float | None:
    best = row.get("best")
    value = best.get("threshold") if isinstance(best, dict) else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
