"""Convert tensor names of Hugging Face transformers' RT-DETR and RT-DETRv2 (`RTDetr*`) to ours and back.

Both directions use one table. Files that transformers publishes and writes still have the names from before version 5
(`encoder.encoder`, `fc1`, `out_proj`), its modules in memory the new ones; both are supported. Supported backbones are
the ResNet-d of the published weights and timm's ResNets.

Besides the names there is one difference: transformers has separate query, key and value projections, we have one
tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from rtdetr_tool.checkpoints.renames import to_foreign, to_native
from rtdetr_tool.checkpoints.transformers_files import join_projections, separate_projections
from rtdetr_tool.families.rtdetr.official import has_gates

# (transformers, ours): prefixes of names, in which `*` stands for a number; the rest of the name is kept.
_RESNET_D: tuple[tuple[str, str], ...] = (
    ("model.backbone.model.embedder.embedder.0.convolution.", "backbone.conv1.0."),
    ("model.backbone.model.embedder.embedder.0.normalization.", "backbone.conv1.1."),
    ("model.backbone.model.embedder.embedder.1.convolution.", "backbone.conv1.3."),
    ("model.backbone.model.embedder.embedder.1.normalization.", "backbone.conv1.4."),
    ("model.backbone.model.embedder.embedder.2.convolution.", "backbone.conv1.6."),
    ("model.backbone.model.embedder.embedder.2.normalization.", "backbone.bn1."),
    *(
        (f"model.backbone.model.encoder.stages.{stage}.layers.*.{foreign}.", f"backbone.layer{stage + 1}.*.{native}.")
        for stage in range(4)
        for foreign, native in (
            ("layer.0.convolution", "conv1"),
            ("layer.0.normalization", "bn1"),
            ("layer.1.convolution", "conv2"),
            ("layer.1.normalization", "bn2"),
            ("layer.2.convolution", "conv3"),
            ("layer.2.normalization", "bn3"),
            # Stage 0 keeps the size; the others pool first, so the projection is the second of two modules.
            ("shortcut.convolution" if stage == 0 else "shortcut.1.convolution", "downsample.1"),
            ("shortcut.normalization" if stage == 0 else "shortcut.1.normalization", "downsample.2"),
        )
    ),
)
_TIMM = (("model.backbone.model._backbone.", "backbone."),)
_NECK: tuple[tuple[str, str], ...] = (
    ("model.encoder_input_proj.", "encoder.input_proj."),
    *(
        (f"model.encoder.aifi.*.layers.*.{foreign}", f"encoder.encoder.*.layers.*.{native}")
        for foreign, native in (
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
        (f"model.decoder.layers.*.{foreign}", f"decoder.decoder.layers.*.{native}")
        for foreign, native in (
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


# Names before transformers 5 -> names since, and back.
_RENAMED = (
    (re.compile(r"^model\.encoder\.encoder\."), "model.encoder.aifi."),
    (re.compile(r"\.self_attn\.out_proj\."), ".self_attn.o_proj."),
    (re.compile(r"(\.layers\.\d+)\.fc([12])\."), r"\1.mlp.fc\2."),
)
_IN_FILES = (
    (re.compile(r"^model\.encoder\.aifi\."), "model.encoder.encoder."),
    (re.compile(r"\.self_attn\.o_proj\."), ".self_attn.out_proj."),
    (re.compile(r"(\.layers\.\d+)\.mlp\.fc([12])\."), r"\1.fc\2."),
)
POINT_SHARES = ".n_points_scale"  # constants of version 2, from which the points per level can be read
# The heads under their second name; published files have one or both.
_SECOND_NAME = re.compile(r"^(class_embed|bbox_embed)\.")


def is_transformers_rtdetr(names: Mapping[str, Tensor]) -> bool:
    """Whether these are names of transformers' RT-DETR."""
    known = any(name.startswith("model.backbone.model.") for name in names) and "model.enc_score_head.weight" in names
    return known and not has_gates(names)


def from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace transformers' names by ours; CheckpointError if a name has no counterpart."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if name.endswith(POINT_SHARES):
            continue
        if _SECOND_NAME.match(name):
            name = f"model.decoder.{name}"
            if name in state_dict:
                continue
        for pattern, new in _RENAMED:
            name = pattern.sub(new, name)
        plain[name] = tensor
    return to_native(join_projections(plain), (*_RESNET_D, *_TIMM, *_NECK))


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace our names by transformers' names in memory (since version 5); CheckpointError if there is none."""
    backbone = _RESNET_D if "backbone.conv1.0.weight" in state_dict else _TIMM
    return separate_projections(to_foreign(state_dict, (*backbone, *_NECK)))


def to_transformers_file(state_dict: Mapping[str, Tensor], point_shares: Tensor | None = None) -> dict[str, Tensor]:
    """Replace our names by transformers' names in files; RT-DETRv2 has `point_shares` in each decoder layer."""
    named: dict[str, Tensor] = {}
    for name, tensor in to_transformers(state_dict).items():
        for pattern, new in _IN_FILES:
            name = pattern.sub(new, name)
        named[name] = tensor.contiguous()
    if point_shares is not None:
        layers = {found[1] for name in named if (found := re.match(r"(model\.decoder\.layers\.\d+\.)", name))}
        named |= {f"{layer}encoder_attn{POINT_SHARES}": point_shares.clone() for layer in sorted(layers)}
    return named
