"""Convert tensor names of the official D-FINE (Peterande/D-FINE) to ours and back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rtdetr_tool.checkpoints.official_names import NECK_TABLE, POINT_SHARES, has_named_parts, without_constants
from rtdetr_tool.checkpoints.renames import to_native

__all__ = ["FIRST_BOX", "POINT_SHARES", "REG_SCALE", "TABLE", "UP", "from_official", "is_official_dfine"]

_UNCHANGED = ("backbone.stem.", "backbone.stages.", "decoder.decoder.lqe_layers.", "decoder.pre_bbox_head.")
TABLE: tuple[tuple[str, str], ...] = (*NECK_TABLE, *((name, name) for name in _UNCHANGED))

REG_SCALE, UP = "decoder.reg_scale", "decoder.up"
FIRST_BOX = "decoder.pre_bbox_head.layers.0.weight"


def is_official_dfine(names: Mapping[str, Tensor]) -> bool:
    """Whether these are names of the official repository that differ from ours."""
    return FIRST_BOX in names and (has_named_parts(names) or REG_SCALE in names)


def from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace official names by ours; CheckpointError if a tensor has no counterpart."""
    return to_native(without_constants(state_dict, (".reg_scale", ".up")), TABLE)
