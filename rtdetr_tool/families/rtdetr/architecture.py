"""Derive the architecture of an RT-DETR, as fields of the spec's `model` section, from the shapes of its tensors.

Some fields do not show in weights: the number of heads (only its product with the sampling points), the levels with
attention, activations and the number of queries. These are taken from the spec or its defaults.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rtdetr_tool.catalog import BACKBONES, FOUNDATION_MODELS
from rtdetr_tool.checkpoints.renames import count, split_by_prefix
from rtdetr_tool.checkpoints.sampling_points import points_from_shares
from rtdetr_tool.errors import CheckpointError

# (bottleneck blocks, blocks per stage) -> depth of a ResNet.
RESNETS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
}
# (global response norm, width of the stem, blocks per stage) -> backbones with stages; FAN has a single list of blocks.
STAGED: dict[tuple[bool, int, tuple[int, ...]], str] = {
    (False, 96, (3, 3, 9, 3)): "convnext_tiny",
    (False, 96, (3, 3, 27, 3)): "convnext_small",
    (False, 128, (3, 3, 27, 3)): "convnext_base",
    (False, 192, (3, 3, 27, 3)): "convnext_large",
    (False, 256, (3, 3, 27, 3)): "convnext_xlarge",
    (True, 80, (2, 2, 8, 2)): "convnextv2_nano",
    (True, 96, (3, 3, 9, 3)): "convnextv2_tiny",
    (True, 128, (3, 3, 27, 3)): "convnextv2_base",
    (True, 192, (3, 3, 27, 3)): "convnextv2_large",
    (True, 352, (3, 3, 27, 3)): "convnextv2_huge",
    (False, 8, (2, 2, 3, 3)): "efficientvit_b0",
    (False, 16, (2, 3, 4, 5)): "efficientvit_b1",
    (False, 24, (3, 4, 5, 7)): "efficientvit_b2",
    (False, 32, (4, 6, 7, 10)): "efficientvit_b3",
    (False, 32, (2, 2, 5, 5)): "efficientvit_l0",
    (False, 32, (2, 2, 7, 7)): "efficientvit_l1",
    (False, 32, (3, 3, 9, 9)): "efficientvit_l2",
    (False, 64, (3, 3, 9, 9)): "efficientvit_l3",
    (False, 24, (2, 2, 6, 2)): "edgenext_xx_small",
    (False, 32, (3, 3, 9, 3)): "edgenext_x_small",
    (False, 48, (3, 3, 9, 3)): "edgenext_small",
    (False, 80, (3, 3, 9, 3)): "edgenext_base",
}
FAN = {8: "fan_tiny", 10: "fan_small", 16: "fan_base", 22: "fan_large"}
# (width, blocks, gated MLP) -> ViTs of DINOv3.
VITS: dict[tuple[int, int, bool], str] = {
    (384, 12, False): "vit_small",
    (384, 12, True): "vit_small_plus",
    (768, 12, False): "vit_base",
}
_HEADS, _POINTS = 8, 4  # of all published models

_STEMS = ("stem.0", "stem.in_conv.conv")
_BLOCK = "decoder.decoder.layers.0."


def architecture_of(
    weights: Mapping[str, Tensor],
    given: Mapping[str, Any],
    source: str,
    points: list[int] | None = None,
) -> tuple[dict[str, Any], int]:
    """The `model` fields that follow from tensors with our names, and the number of classes.

    Args:
        given: fields of `model` that are known from elsewhere; they decide what the tensors leave open.
        points: sampling points per level, if the file has them.

    Raises:
        CheckpointError: a part is missing, or neither tensors nor `given` determine a field.
    """
    try:
        model = {**_backbone(weights, given, source), **_encoder(weights), **_decoder(weights)}
        model |= _sampling(weights, given, source, model["num_feature_levels"], points)
        return model, weights["decoder.enc_score_head.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"{source} is not a complete detector: it lacks {error.args[0]}.") from error


def points_per_level(shares: Tensor) -> list[int]:
    """Sampling points per level, as `model.num_points`: one number if it is the same for all levels."""
    points = points_from_shares(shares)
    return points if len(set(points)) > 1 else points[:1]


def backbone_of(weights: Mapping[str, Tensor]) -> str | None:
    """The catalog's name of the network under `backbone.`, None if it does not follow from the tensors."""
    blocks = tuple(count(weights, f"backbone.layer{stage}.") for stage in range(1, 5))
    if depth := RESNETS.get(("backbone.layer1.0.conv3.weight" in weights, blocks)):
        return f"resnet_{depth}{'d' if 'backbone.conv1.0.weight' in weights else ''}"
    if any(name.startswith("backbone.network.") for name in weights):
        return _dinov3(split_by_prefix(weights, "backbone.network.")[0])
    if any(name.startswith("backbone.patch_embed.") for name in weights):
        return FAN.get(count(weights, "backbone.blocks."))
    stem = next((weights[f"backbone.{name}.weight"] for name in _STEMS if f"backbone.{name}.weight" in weights), None)
    if stem is None:
        return None
    blocks = tuple(count(weights, f"backbone.stages.{stage}.blocks.") for stage in range(4))
    name = STAGED.get((any(".grn." in name for name in weights), stem.shape[0], blocks), "")
    if name.startswith("edgenext") and "backbone.stem.1.running_mean" in weights:
        name += "_bn_hs"  # batch norms and hard swish
    return name if name in BACKBONES else None


def _dinov3(network: Mapping[str, Tensor]) -> str | None:
    """The catalog's name of a DINOv3 with these tensors."""
    if "stem.0.weight" in network:
        blocks = tuple(count(network, f"stages.{stage}.blocks.") for stage in range(4))
        name = f"dinov3_{STAGED.get((False, network['stem.0.weight'].shape[0], blocks))}"
    else:
        shape = (network["cls_token"].shape[-1], count(network, "blocks."), "blocks.0.mlp.fc1_g.weight" in network)
        name = f"dinov3_{VITS.get(shape)}"
    return name if name in BACKBONES else None


def _backbone(weights: Mapping[str, Tensor], given: Mapping[str, Any], source: str) -> dict[str, Any]:
    name = backbone_of(weights) or given.get("backbone")
    if name is None:
        names = [name for name in weights if name.startswith("backbone.")]
        raise CheckpointError(
            f"{source} has an unknown backbone with tensors such as {names[0]}. Set model.backbone in a spec (-e) or "
            "on the command line."
        )
    levels = _levels(weights)
    inputs = [weights[f"encoder.input_proj.{level}.0.weight"].shape[1] for level in range(levels)]
    fields: dict[str, Any] = {"backbone": name}
    row = BACKBONES.get(name)
    stages = [index for index in range(4) if row and list(row.channels[index : index + levels]) == inputs]
    if row and row.channels and stages:
        indices = list(range(stages[0], stages[0] + levels))
        fields |= {"return_interm_indices": indices, "feat_strides": [row.strides[index] for index in indices]}
    return fields


def _levels(weights: Mapping[str, Tensor]) -> int:
    """The number of feature levels, without the encoder's additional one for a frozen foundation model."""
    return count(weights, "encoder.input_proj.") - ("decoder.decoder.image_query_proj.0.weight" in weights)


def _encoder(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    levels, width = _levels(weights), weights["encoder.input_proj.0.0.weight"].shape[0]
    fields: dict[str, Any] = {
        "num_feature_levels": levels,
        "hidden_dim": width,
        "feat_channels": [width] * levels,
        "enc_layers": count(weights, "encoder.encoder.0.layers."),
        "dim_feedforward": weights["encoder.encoder.0.layers.0.linear1.weight"].shape[0],
    }
    if levels > 1:
        inside = weights["encoder.fpn_blocks.0.conv1.conv.weight"].shape[0]
        blocks = count(weights, "encoder.fpn_blocks.0.bottlenecks.")
        fields |= {"expansion": inside / width, "depth_mult": max(1, round(blocks / 3))}
    if "decoder.decoder.image_query_proj.0.weight" in weights:
        radio = weights[f"encoder.input_proj.{levels}.0.weight"].shape[1]
        name = next((row.name for row in FOUNDATION_MODELS.values() if row.width == radio), None)
        fields["frozen_fm"] = {"enabled": True, "checkpoint": None, **({"backbone": name} if name else {})}
    return fields


def _decoder(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    width = weights["decoder.enc_output.0.weight"].shape[0]
    inner = weights[f"{_BLOCK}linear1.weight"].shape[0]
    fields: dict[str, Any] = {"dec_layers": count(weights, "decoder.decoder.layers.")}
    if width != weights["encoder.input_proj.0.0.weight"].shape[0]:
        fields["dec_hidden_dim"] = width
    if inner != weights["encoder.encoder.0.layers.0.linear1.weight"].shape[0]:
        fields["dec_dim_feedforward"] = inner
    if "decoder.denoising_class_embed.weight" not in weights:
        fields["dn_number"] = 0
    return fields


def _sampling(
    weights: Mapping[str, Tensor], given: Mapping[str, Any], source: str, levels: int, points: list[int] | None
) -> dict[str, Any]:
    """Heads and points, of which the tensors only show the product heads * (points of all levels)."""
    total = weights[f"{_BLOCK}cross_attn.attention_weights.bias"].shape[0]
    points = points or given.get("num_points")
    heads = given.get("nheads")
    if points:
        each = points * levels if len(points) == 1 else points
        if total % sum(each) == 0:
            return {"num_points": list(points), "nheads": total // sum(each)}
    elif heads and total % (heads * levels) == 0:
        return {"num_points": [total // (heads * levels)], "nheads": heads}
    elif total == _HEADS * _POINTS * levels:
        return {"num_points": [_POINTS], "nheads": _HEADS}
    raise CheckpointError(
        f"{source} samples {total} points per query on {levels} levels, which matches several numbers of heads and "
        f"points (such as {_examples(total, levels)}). Set model.nheads and model.num_points in a spec (-e)."
    )


def _examples(total: int, levels: int) -> str:
    fitting = [heads for heads in (1, 2, 4, 8, 16) if total % (heads * levels) == 0]
    return ", ".join(f"{heads} heads of {total // (heads * levels)} points" for heads in fitting) or "none"


def describe_model(model: Mapping[str, Any], classes: int) -> str:
    """One line about the architecture, for the log."""
    shown = {name: value for name, value in model.items() if name not in ("backbone", "feat_channels", "feat_strides")}
    fields = ", ".join(f"{name} {_text(value)}" for name, value in shown.items())
    return f"{model.get('backbone', 'backbone unknown')}, {classes} classes, {fields}"


def _text(value: Any) -> str:
    return re.sub(r"[{}']", "", str(round(value, 4) if isinstance(value, float) else value))
