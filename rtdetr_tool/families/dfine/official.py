"""Convert tensor names of the official D-FINE (Peterande/D-FINE) to ours and back.

Ours are the same except for projections, whose parts we number (as in RT-DETR), and for constants, which follow from
the spec.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rtdetr_tool.checkpoints.renames import to_native
from rtdetr_tool.errors import CheckpointError

_RENAMED = (
    ("encoder.input_proj.*.conv.", "encoder.input_proj.*.0."),
    ("encoder.input_proj.*.norm.", "encoder.input_proj.*.1."),
    ("decoder.enc_output.proj.", "decoder.enc_output.0."),
    ("decoder.enc_output.norm.", "decoder.enc_output.1."),
)
_KEPT = (
    "backbone.stem.",
    "backbone.stages.",
    "encoder.encoder.*.layers.",
    "encoder.lateral_convs.",
    "encoder.fpn_blocks.",
    "encoder.downsample_convs.",
    "encoder.pan_blocks.",
    "decoder.input_proj.",
    "decoder.decoder.layers.",
    "decoder.decoder.lqe_layers.",
    "decoder.denoising_class_embed.",
    "decoder.query_pos_head.",
    "decoder.enc_score_head.",
    "decoder.enc_bbox_head.",
    "decoder.pre_bbox_head.",
    "decoder.dec_score_head.",
    "decoder.dec_bbox_head.",
)
TABLE: tuple[tuple[str, str], ...] = (*_RENAMED, *((name, name) for name in _KEPT))

POINT_SHARES = ".num_points_scale"
REG_SCALE, UP = "decoder.reg_scale", "decoder.up"
_IGNORED = (".anchors", ".valid_mask", POINT_SHARES, ".reg_scale", ".up")
FIRST_BOX = "decoder.pre_bbox_head.layers.0.weight"
# Options of the official code that no published model uses.
_REFUSED = {"decoder.tgt_embed.": "learned initial queries (learn_query_content)"}


def is_official_dfine(names: Mapping[str, Tensor]) -> bool:
    """Whether these are names of the official repository that differ from ours."""
    return FIRST_BOX in names and ("encoder.input_proj.0.conv.weight" in names or REG_SCALE in names)


def from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace official names by ours; CheckpointError if a tensor has no counterpart."""
    kept: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        for start, what in _REFUSED.items():
            if name.startswith(start):
                raise CheckpointError(f"its {name} belongs to {what}, which are not supported")
        if not name.endswith(_IGNORED):
            kept[name] = tensor
    return to_native(kept, TABLE)
