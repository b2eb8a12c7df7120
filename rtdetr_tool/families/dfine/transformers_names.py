"""Convert tensor names of Hugging Face transformers' D-FINE (`DFine*`) to ours and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rtdetr_tool.checkpoints.transformers_names import (
    DECODER_PROJECTION,
    ENCODER_PROJECTION,
    HEADS,
    FeedForwardNames,
    as_in_files,
    decoder_layers,
    encoder_layers,
    from_names_of_transformers,
    to_names_of_transformers,
)
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
_FEED_FORWARD = FeedForwardNames("mlp.layers.0.", "mlp.layers.1.")
_ENCODER: tuple[tuple[str, str], ...] = (
    *ENCODER_PROJECTION,
    *encoder_layers(_FEED_FORWARD),
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
    *DECODER_PROJECTION,
    *decoder_layers(_FEED_FORWARD, ("gateway.", "gateway.")),
    ("model.decoder.lqe_layers.", "decoder.decoder.lqe_layers."),
    ("model.decoder.pre_bbox_head.", "decoder.pre_bbox_head."),
    *HEADS,
)
_TABLE = (*_BACKBONE, *_ENCODER, *_DECODER)

POINT_SHARES = ".num_points_scale"
REG_SCALE, UP = "model.decoder.reg_scale", "model.decoder.up"


def is_transformers_dfine(names: Mapping[str, Tensor]) -> bool:
    """Whether these are names of transformers' D-FINE."""
    return "model.decoder.pre_bbox_head.layers.0.weight" in names and "model.enc_score_head.weight" in names


def from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace transformers' names by ours; CheckpointError if a name has no counterpart."""
    return from_names_of_transformers(state_dict, _TABLE, _FEED_FORWARD, (POINT_SHARES, REG_SCALE, UP))


def to_transformers(state_dict: Mapping[str, Tensor], points: Sequence[int], reg_scale: float) -> dict[str, Tensor]:
    """Replace our names by transformers' names in memory, with its constants."""
    shares = torch.tensor([1 / count for count in points for _ in range(count)])
    named = to_names_of_transformers(state_dict, _TABLE, POINT_SHARES, shares)
    return {**named, REG_SCALE: torch.tensor([reg_scale]), UP: torch.tensor([LARGEST])}


def to_transformers_file(
    state_dict: Mapping[str, Tensor], points: Sequence[int], reg_scale: float
) -> dict[str, Tensor]:
    """The same with the names in files."""
    return as_in_files(to_transformers(state_dict, points, reg_scale), _FEED_FORWARD)
