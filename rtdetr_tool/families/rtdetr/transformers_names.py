"""Convert tensor names of Hugging Face transformers' RT-DETR and RT-DETRv2 (`RTDetr*`) to ours and back.

Both directions use one table. Supported backbones are the ResNet-d of the published weights and timm's ResNets.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rtdetr_tool.checkpoints.transformers_names import (
    DECODER_PROJECTION,
    ENCODER_PROJECTION,
    FUSION,
    HEADS,
    FeedForwardNames,
    as_in_files,
    decoder_layers,
    encoder_layers,
    from_names_of_transformers,
    to_names_of_transformers,
)
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
_FEED_FORWARD = FeedForwardNames("mlp.fc1.", "mlp.fc2.")
_NECK = (
    *ENCODER_PROJECTION,
    *encoder_layers(_FEED_FORWARD),
    *((f"model.encoder.{part}.", f"encoder.{part}.") for part in FUSION),
    *DECODER_PROJECTION,
    *decoder_layers(_FEED_FORWARD, ("encoder_attn_layer_norm.", "norm2.")),
    *HEADS,
)
POINT_SHARES = ".n_points_scale"  # constants of version 2, from which the points per level can be read


def is_transformers_rtdetr(names: Mapping[str, Tensor]) -> bool:
    """Whether these are names of transformers' RT-DETR."""
    known = any(name.startswith("model.backbone.model.") for name in names) and "model.enc_score_head.weight" in names
    return known and not has_gates(names)


def from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace transformers' names by ours; CheckpointError if a name has no counterpart."""
    return from_names_of_transformers(state_dict, (*_RESNET_D, *_TIMM, *_NECK), _FEED_FORWARD, (POINT_SHARES,))


def to_transformers(state_dict: Mapping[str, Tensor], point_shares: Tensor | None = None) -> dict[str, Tensor]:
    """Replace our names by transformers' names in memory; CheckpointError if there is none.

    Args:
        point_shares: the share of each sampling point, which RT-DETRv2 has in each decoder layer.
    """
    backbone = _RESNET_D if "backbone.conv1.0.weight" in state_dict else _TIMM
    return to_names_of_transformers(state_dict, (*backbone, *_NECK), POINT_SHARES, point_shares)


def to_transformers_file(state_dict: Mapping[str, Tensor], point_shares: Tensor | None = None) -> dict[str, Tensor]:
    """The same with the names in files."""
    return as_in_files(to_transformers(state_dict, point_shares), _FEED_FORWARD)
