"""Tensor names of Hugging Face transformers that RT-DETR and the detectors built on it share.

Files that transformers publishes and writes have the names from before version 5 (`encoder.encoder`, `fc1`,
`out_proj`), its modules in memory the new ones. The tables of the families have the new names. Besides the names there
is one difference: transformers has separate query, key and value projections, we have one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from rtdetr_tool.checkpoints.renames import Table, to_foreign, to_native
from rtdetr_tool.checkpoints.transformers_files import join_projections, separate_projections

# (transformers, ours): prefixes of names, in which `*` stands for a number; the rest of the name is kept.
ENCODER_PROJECTION = (("model.encoder_input_proj.", "encoder.input_proj."),)
DECODER_PROJECTION = (
    ("model.decoder_input_proj.*.0.", "decoder.input_proj.*.conv."),
    ("model.decoder_input_proj.*.1.", "decoder.input_proj.*.norm."),
)
FUSION = ("lateral_convs", "fpn_blocks", "downsample_convs", "pan_blocks")  # parts of the encoder
HEADS = (
    ("model.denoising_class_embed.", "decoder.denoising_class_embed."),
    ("model.enc_output.", "decoder.enc_output."),
    ("model.enc_score_head.", "decoder.enc_score_head."),
    ("model.enc_bbox_head.", "decoder.enc_bbox_head."),
    ("model.decoder.query_pos_head.", "decoder.query_pos_head."),
    ("model.decoder.class_embed.", "decoder.dec_score_head."),
    ("model.decoder.bbox_embed.", "decoder.dec_bbox_head."),
)
# The heads under their second name; published files have one or both.
_SECOND_NAME = re.compile(r"^(class_embed|bbox_embed)\.")
_DECODER_LAYER = re.compile(r"(model\.decoder\.layers\.\d+\.)")


class FeedForwardNames(NamedTuple):
    """The names of the two linear layers in transformer layers, since version 5."""

    first: str
    second: str


def encoder_layers(feed_forward: FeedForwardNames) -> Table:
    """Rows for the transformer layers of the hybrid encoder."""
    return tuple(
        (f"model.encoder.aifi.*.layers.*.{foreign}", f"encoder.encoder.*.layers.*.{native}")
        for foreign, native in (*_attention_and_mlp(feed_forward), ("final_layer_norm.", "norm2."))
    )


def decoder_layers(feed_forward: FeedForwardNames, *cross_attention: tuple[str, str]) -> Table:
    """Rows for the decoder layers; `cross_attention` has the rows of what follows the attention to the levels."""
    inner = (("encoder_attn.", "cross_attn."), *cross_attention, ("final_layer_norm.", "norm3."))
    return tuple(
        (f"model.decoder.layers.*.{foreign}", f"decoder.decoder.layers.*.{native}")
        for foreign, native in (*_attention_and_mlp(feed_forward), *inner)
    )


def _attention_and_mlp(feed_forward: FeedForwardNames) -> Table:
    return (
        ("self_attn.in_proj_", "self_attn.in_proj_"),
        ("self_attn.o_proj.", "self_attn.out_proj."),
        ("self_attn_layer_norm.", "norm1."),
        (feed_forward.first, "linear1."),
        (feed_forward.second, "linear2."),
    )


def from_names_of_transformers(
    state_dict: Mapping[str, Tensor], table: Table, feed_forward: FeedForwardNames, ignored: tuple[str, ...]
) -> dict[str, Tensor]:
    """Replace transformers' names, old or new, by ours.

    Args:
        ignored: ends of names of constants, which follow from the spec.

    Raises:
        CheckpointError: a name has no counterpart.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if name.endswith(ignored):
            continue
        if _SECOND_NAME.match(name):
            name = f"model.decoder.{name}"
            if name in state_dict:
                continue
        for start, old, new in _changes(feed_forward):
            name = re.sub(rf"({start}){re.escape(old)}", rf"\1{new}", name)
        plain[name] = tensor
    return to_native(join_projections(plain), table)


def to_names_of_transformers(
    state_dict: Mapping[str, Tensor], table: Table, shares_name: str, point_shares: Tensor | None
) -> dict[str, Tensor]:
    """Replace our names by transformers' names in memory; the inverse of `from_names_of_transformers`.

    Args:
        point_shares: the share of each sampling point, which is added to each decoder layer as `shares_name`.
    """
    named = separate_projections(to_foreign(state_dict, table))
    if point_shares is not None:
        layers = {match[1] for name in named if (match := _DECODER_LAYER.match(name))}
        named |= {f"{layer}encoder_attn{shares_name}": point_shares.clone() for layer in sorted(layers)}
    return named


def as_in_files(state_dict: Mapping[str, Tensor], feed_forward: FeedForwardNames) -> dict[str, Tensor]:
    """Replace transformers' names in memory by those in files."""
    named: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        for start, old, new in _changes(feed_forward):
            name = re.sub(rf"({start}){re.escape(new)}", rf"\1{old}", name)
        named[name] = tensor.contiguous()
    return named


def _changes(feed_forward: FeedForwardNames) -> tuple[tuple[str, str, str], ...]:
    """What version 5 renamed: a pattern for the preceding part of the name, the old part, the new one."""
    return (
        (r"^model\.encoder\.", "encoder.", "aifi."),
        (r"\.self_attn\.", "out_proj.", "o_proj."),
        (r"\.layers\.\d+\.", "fc1.", feed_forward.first),
        (r"\.layers\.\d+\.", "fc2.", feed_forward.second),
    )


def without_unused_layers(
    weights: Mapping[str, Tensor], dec_layers: int, eval_idx: int, prefixes: tuple[str, ...], section: str
) -> tuple[dict[str, Tensor], int, list[str]]:
    """Weights without the decoder layers after `eval_idx`, because transformers predicts with the last layer.

    Args:
        prefixes: names of the lists with one module per decoder layer, ending in a dot.
        section: of the spec that has these fields, for messages.

    Returns:
        The weights, the number of remaining layers, and messages.
    """
    used = dec_layers if eval_idx < 0 else eval_idx + 1
    if used == dec_layers:
        return dict(weights), used, []
    note = f"skipped decoder layers {used} to {dec_layers - 1}, which {section}.eval_idx does not use"
    return {name: tensor for name, tensor in weights.items() if _layer(name, prefixes) < used}, used, [note]


def _layer(name: str, prefixes: tuple[str, ...]) -> int:
    """The number of the decoder layer of a tensor; -1 if it belongs to none."""
    prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
    return -1 if prefix is None else int(name.removeprefix(prefix).partition(".")[0])
