"""Tensor names of the official RT-DETR (lyuwenyu/RT-DETR) and D-FINE (Peterande/D-FINE) after the backbone.

Ours are those of RT-DETR's version 1, which numbers the parts of projections. RT-DETRv2 and D-FINE name them `conv`,
`norm` and `proj`, and store constants, which follow from the spec.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rtdetr_tool.errors import CheckpointError

_NAMED_PARTS = (
    ("encoder.input_proj.*.conv.", "encoder.input_proj.*.0."),
    ("encoder.input_proj.*.norm.", "encoder.input_proj.*.1."),
    ("decoder.enc_output.proj.", "decoder.enc_output.0."),
    ("decoder.enc_output.norm.", "decoder.enc_output.1."),
)
_UNCHANGED = (
    "encoder.input_proj.*.0.",
    "encoder.input_proj.*.1.",
    "encoder.encoder.*.layers.",
    "encoder.lateral_convs.",
    "encoder.fpn_blocks.",
    "encoder.downsample_convs.",
    "encoder.pan_blocks.",
    "decoder.input_proj.",
    "decoder.decoder.layers.",
    "decoder.denoising_class_embed.",
    "decoder.query_pos_head.",
    "decoder.enc_output.0.",
    "decoder.enc_output.1.",
    "decoder.enc_score_head.",
    "decoder.enc_bbox_head.",
    "decoder.dec_score_head.",
    "decoder.dec_bbox_head.",
)
# (official, ours); `*` stands for a number, and the rest of the name is kept
NECK_TABLE: tuple[tuple[str, str], ...] = (*_NAMED_PARTS, *((name, name) for name in _UNCHANGED))

POINT_SHARES = ".num_points_scale"  # constants, from which the points per level can be read
_CONSTANTS = (".anchors", ".valid_mask", POINT_SHARES)
# Options of the official code that no published model uses.
_REFUSED = {"decoder.tgt_embed.": "learned initial queries (learn_query_content, learnt_init_query)"}


def has_named_parts(names: Mapping[str, Tensor]) -> bool:
    """Whether the parts of projections are named, as in RT-DETRv2 and D-FINE."""
    return "encoder.input_proj.0.conv.weight" in names


def without_constants(state_dict: Mapping[str, Tensor], constants: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The tensors that have a counterpart.

    Args:
        constants: ends of further names to drop.

    Raises:
        CheckpointError: tensors of an option that is not supported.
    """
    for name in state_dict:
        for start, what in _REFUSED.items():
            if name.startswith(start):
                raise CheckpointError(f"its {name} belongs to {what}, which are not supported")
    return {name: tensor for name, tensor in state_dict.items() if not name.endswith((*_CONSTANTS, *constants))}
