"""Names of Hugging Face transformers' RT-DETR (`RTDetrForObjectDetection`, `RTDetrV2ForObjectDetection`) and ours.

Both directions read one table. The files that transformers publishes and writes still carry the names it used before
version 5 (`encoder.encoder`, `fc1`, `out_proj`); its modules in memory carry the new ones: both are understood, the new
ones are given back. Only the ResNet-d backbones of the published weights have a counterpart here.

The one difference beyond names: transformers keeps query, key and value projections apart, we in one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from rtdetr_tool.errors import CheckpointError

# (transformers, ours): the starts of names, where `*` is a number that is carried over. What follows is kept.
TABLE: tuple[tuple[str, str], ...] = (
    ("model.backbone.model.embedder.embedder.0.convolution.", "backbone.conv1.0."),
    ("model.backbone.model.embedder.embedder.0.normalization.", "backbone.conv1.1."),
    ("model.backbone.model.embedder.embedder.1.convolution.", "backbone.conv1.3."),
    ("model.backbone.model.embedder.embedder.1.normalization.", "backbone.conv1.4."),
    ("model.backbone.model.embedder.embedder.2.convolution.", "backbone.conv1.6."),
    ("model.backbone.model.embedder.embedder.2.normalization.", "backbone.bn1."),
    *(
        (f"model.backbone.model.encoder.stages.{stage}.layers.*.{theirs}.", f"backbone.layer{stage + 1}.*.{ours}.")
        for stage in range(4)
        for theirs, ours in (
            ("layer.0.convolution", "conv1"),
            ("layer.0.normalization", "bn1"),
            ("layer.1.convolution", "conv2"),
            ("layer.1.normalization", "bn2"),
            ("layer.2.convolution", "conv3"),
            ("layer.2.normalization", "bn3"),
            # Stage 0 keeps the size; the others pool first, which makes the projection the second of two modules.
            ("shortcut.convolution" if stage == 0 else "shortcut.1.convolution", "downsample.1"),
            ("shortcut.normalization" if stage == 0 else "shortcut.1.normalization", "downsample.2"),
        )
    ),
    ("model.encoder_input_proj.", "encoder.input_proj."),
    *(
        (f"model.encoder.aifi.*.layers.*.{theirs}", f"encoder.encoder.*.layers.*.{ours}")
        for theirs, ours in (
            ("self_attn.in_proj_", "self_attn.in_proj_"),
            ("self_attn.o_proj.", "self_attn.out_proj."),
            ("self_attn_layer_norm.", "norm1."),
            ("mlp.fc1.", "linear1."),
            ("mlp.fc2.", "linear2."),
            ("final_layer_norm.", "norm2."),
        )
    ),
    ("model.encoder.lateral_convs.", "encoder.lateral_convs."),
    ("model.encoder.fpn_blocks.", "encoder.fpn_blocks."),
    ("model.encoder.downsample_convs.", "encoder.downsample_convs."),
    ("model.encoder.pan_blocks.", "encoder.pan_blocks."),
    ("model.decoder_input_proj.*.0.", "decoder.input_proj.*.conv."),
    ("model.decoder_input_proj.*.1.", "decoder.input_proj.*.norm."),
    *(
        (f"model.decoder.layers.*.{theirs}", f"decoder.decoder.layers.*.{ours}")
        for theirs, ours in (
            ("self_attn.in_proj_", "self_attn.in_proj_"),
            ("self_attn.o_proj.", "self_attn.out_proj."),
            ("self_attn_layer_norm.", "norm1."),
            ("encoder_attn.", "cross_attn."),
            ("encoder_attn_layer_norm.", "norm2."),
            ("mlp.fc1.", "linear1."),
            ("mlp.fc2.", "linear2."),
            ("final_layer_norm.", "norm3."),
        )
    ),
    ("model.denoising_class_embed.", "decoder.denoising_class_embed."),
    ("model.enc_output.", "decoder.enc_output."),
    ("model.enc_score_head.", "decoder.enc_score_head."),
    ("model.enc_bbox_head.", "decoder.enc_bbox_head."),
    ("model.decoder.query_pos_head.", "decoder.query_pos_head."),
    ("model.decoder.class_embed.", "decoder.dec_score_head."),
    ("model.decoder.bbox_embed.", "decoder.dec_bbox_head."),
)

# Names before transformers 5 -> names since.
_RENAMED = (
    (re.compile(r"^model\.encoder\.encoder\."), "model.encoder.aifi."),
    (re.compile(r"\.self_attn\.out_proj\."), ".self_attn.o_proj."),
    (re.compile(r"(\.layers\.\d+)\.fc([12])\."), r"\1.mlp.fc\2."),
)
# Copies of other tensors, and constants: the heads under their second name, the point scale of version 2.
_LEFT_OUT = re.compile(r"^(class_embed|bbox_embed)\.|\.n_points_scale$")
_PROJECTION = re.compile(r"^(.+\.self_attn\.)([qkv])_proj\.(weight|bias)$")
_JOINED = re.compile(r"^(.+\.self_attn\.)in_proj_(weight|bias)$")


def is_transformers_rtdetr(names: Mapping[str, Tensor]) -> bool:
    """Whether these are names of transformers' RT-DETR."""
    return any(name.startswith("model.backbone.model.") for name in names) and "model.enc_score_head.weight" in names


def from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names for transformers' weights; CheckpointError when a name has no counterpart."""
    joined: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state_dict.items():
        if _LEFT_OUT.search(name):
            continue
        for pattern, new in _RENAMED:
            name = pattern.sub(new, name)
        if found := _PROJECTION.match(name):
            parts.setdefault(f"{found[1]}in_proj_{found[3]}", {})[found[2]] = tensor
        else:
            joined[name] = tensor
    for name, projections in parts.items():
        if len(projections) != 3:
            raise CheckpointError(f"the query, key or value projection of {name.rsplit('.', 1)[0]} is missing")
        joined[name] = torch.cat([projections[part] for part in "qkv"])
    return _renamed(joined, [(theirs, ours) for theirs, ours in TABLE])


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names (since version 5) for our weights; CheckpointError when a name has no counterpart."""
    separate: dict[str, Tensor] = {}
    for name, tensor in _renamed(state_dict, [(ours, theirs) for theirs, ours in TABLE]).items():
        if found := _JOINED.match(name):
            for part, projection in zip("qkv", tensor.chunk(3), strict=True):
                separate[f"{found[1]}{part}_proj.{found[2]}"] = projection.clone()
        else:
            separate[name] = tensor
    return separate


def _renamed(state_dict: Mapping[str, Tensor], table: list[tuple[str, str]]) -> dict[str, Tensor]:
    rules = [(re.compile(re.escape(old).replace(r"\*", r"(\d+)")), new) for old, new in table]
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state_dict.items():
        for pattern, new in rules:
            if found := pattern.match(name):
                numbers = iter(found.groups())
                renamed[re.sub(r"\*", lambda _: next(numbers), new) + name[found.end() :]] = tensor  # noqa: B023
                break
        else:
            unknown.append(name)
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise CheckpointError(f"no counterpart is known for {', '.join(unknown[:5])}{more}")
    return renamed
