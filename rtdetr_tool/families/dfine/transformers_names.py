"""Convert tensor names of Hugging Face transformers' D-FINE (`DFine*`) to ours and back.

Files that transformers writes have the names from before version 5 (`encoder.encoder`, `fc1`, `out_proj`), its modules
in memory the new ones; both are supported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rtdetr_tool.checkpoints.renames import to_foreign, to_native
from rtdetr_tool.checkpoints.transformers_files import join_projections, separate_projections
from rtdetr_tool.families.dfine.model.distribution import UP as LARGEST

_LAYER = (("convolution", "conv"), ("normalization", "bn"), ("lab", "lab"))
_STAGES = "model.backbone.model.encoder.stages.*."
_BACKBONE: tuple[tuple[str, str], ...] = (
    *(
        (f"model.backbone.model.embedder.{stem}.{foreign}.", f"backbone.stem.{stem}.{native}.")
        for stem in ("stem1", "stem2a", "stem2b", "stem3", "stem4")
        for foreign, native in _LAYER
    ),
    *(
        (f"{_STAGES}{place}{foreign}.", f"backbone.stages.*.{place}{native}.")
        for place in (
            "downsample.", "blocks.*.layers.*.", "blocks.*.layers.*.conv1.", "blocks.*.layers.*.conv2.",
            "blocks.*.aggregation.*.",
        )
        for foreign, native in _LAYER
    ),
)  # fmt: skip
_BLOCK = (
    ("conv1", "cv1"), ("csp_rep1", "cv2.0"), ("conv2", "cv2.1"), ("csp_rep2", "cv3.0"), ("conv3", "cv3.1"),
    ("conv4", "cv4"),
)  # fmt: skip
_NECK: tuple[tuple[str, str], ...] = (
    ("model.encoder_input_proj.", "encoder.input_proj."),
    *(
        (f"model.encoder.aifi.*.layers.*.{foreign}", f"encoder.encoder.*.layers.*.{native}")
        for foreign, native in (
            ("self_attn.in_proj_", "self_attn.in_proj_"),
            ("self_attn.o_proj.", "self_attn.out_proj."),
            ("self_attn_layer_norm.", "norm1."),
            ("mlp.layers.0.", "linear1."),
            ("mlp.layers.1.", "linear2."),
            ("final_layer_norm.", "norm2."),
        )
    ),
    ("model.encoder.lateral_convs.", "encoder.lateral_convs."),
    *(
        (f"model.encoder.{part}.*.{foreign}.", f"encoder.{part}.*.{native}.")
        for part in ("fpn_blocks", "pan_blocks")
        for foreign, native in _BLOCK
    ),
    ("model.encoder.downsample_convs.*.conv1.", "encoder.downsample_convs.*.0.cv1."),
    ("model.encoder.downsample_convs.*.conv2.", "encoder.downsample_convs.*.0.cv2."),
)
_DECODER: tuple[tuple[str, str], ...] = (
    ("model.decoder_input_proj.*.0.", "decoder.input_proj.*.conv."),
    ("model.decoder_input_proj.*.1.", "decoder.input_proj.*.norm."),
    *(
        (f"model.decoder.layers.*.{foreign}", f"decoder.decoder.layers.*.{native}")
        for foreign, native in (
            ("self_attn.in_proj_", "self_attn.in_proj_"),
            ("self_attn.o_proj.", "self_attn.out_proj."),
            ("self_attn_layer_norm.", "norm1."),
            ("encoder_attn.", "cross_attn."),
            ("gateway.", "gateway."),
            ("mlp.layers.0.", "linear1."),
            ("mlp.layers.1.", "linear2."),
            ("final_layer_norm.", "norm3."),
        )
    ),
    ("model.decoder.lqe_layers.", "decoder.decoder.lqe_layers."),
    ("model.decoder.pre_bbox_head.", "decoder.pre_bbox_head."),
    ("model.decoder.query_pos_head.", "decoder.query_pos_head."),
    ("model.decoder.class_embed.", "decoder.dec_score_head."),
    ("model.decoder.bbox_embed.", "decoder.dec_bbox_head."),
    ("model.denoising_class_embed.", "decoder.denoising_class_embed."),
    ("model.enc_output.", "decoder.enc_output."),
    ("model.enc_score_head.", "decoder.enc_score_head."),
    ("model.enc_bbox_head.", "decoder.enc_bbox_head."),
)
_TABLE = (*_BACKBONE, *_NECK, *_DECODER)

# Names before transformers 5 -> names since, and back; those of heads are numbered lists as well, so only whole layers.
_RENAMED = (
    (re.compile(r"^model\.encoder\.encoder\."), "model.encoder.aifi."),
    (re.compile(r"\.self_attn\.out_proj\."), ".self_attn.o_proj."),
    (re.compile(r"(\.layers\.\d+)\.fc1\."), r"\1.mlp.layers.0."),
    (re.compile(r"(\.layers\.\d+)\.fc2\."), r"\1.mlp.layers.1."),
)
_IN_FILES = (
    (re.compile(r"^model\.encoder\.aifi\."), "model.encoder.encoder."),
    (re.compile(r"\.self_attn\.o_proj\."), ".self_attn.out_proj."),
    (re.compile(r"(\.layers\.\d+)\.mlp\.layers\.0\."), r"\1.fc1."),
    (re.compile(r"(\.layers\.\d+)\.mlp\.layers\.1\."), r"\1.fc2."),
)
POINT_SHARES = ".num_points_scale"
REG_SCALE, UP = "model.decoder.reg_scale", "model.decoder.up"
_SECOND_NAME = re.compile(r"^(class_embed|bbox_embed)\.")


def is_transformers_dfine(names: Mapping[str, Tensor]) -> bool:
    """Whether these are names of transformers' D-FINE."""
    return "model.decoder.pre_bbox_head.layers.0.weight" in names and "model.enc_score_head.weight" in names


def from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace transformers' names by ours; CheckpointError if a name has no counterpart."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if name.endswith(POINT_SHARES) or name in (REG_SCALE, UP):
            continue
        if _SECOND_NAME.match(name):
            name = f"model.decoder.{name}"
            if name in state_dict:
                continue
        for pattern, new in _RENAMED:
            name = pattern.sub(new, name)
        plain[name] = tensor
    return to_native(join_projections(plain), _TABLE)


def to_transformers(state_dict: Mapping[str, Tensor], points: Sequence[int], reg_scale: float) -> dict[str, Tensor]:
    """Replace our names by transformers' names in memory, with its constants."""
    named = separate_projections(to_foreign(state_dict, _TABLE))
    shares = torch.tensor([1 / count for count in points for _ in range(count)])
    layers = {found[1] for name in named if (found := re.match(r"(model\.decoder\.layers\.\d+\.)", name))}
    named |= {f"{layer}encoder_attn{POINT_SHARES}": shares.clone() for layer in sorted(layers)}
    return {**named, REG_SCALE: torch.tensor([reg_scale]), UP: torch.tensor([LARGEST])}


def to_transformers_file(
    state_dict: Mapping[str, Tensor], points: Sequence[int], reg_scale: float
) -> dict[str, Tensor]:
    """The same with the names in files."""
    named: dict[str, Tensor] = {}
    for name, tensor in to_transformers(state_dict, points, reg_scale).items():
        for pattern, new in _IN_FILES:
            name = pattern.sub(new, name)
        named[name] = tensor.contiguous()
    return named
