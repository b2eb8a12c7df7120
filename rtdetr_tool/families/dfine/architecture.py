"""Derive the architecture of a D-FINE from the shapes of its tensors: the published variant and what differs from it.

Some fields do not show in weights: the numbers of queries and of points per level, the scale of the distributions and
the layer that predicts. These are taken from other tensors of the file, the spec or the variant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rtdetr_tool.catalog import DFINE_HEADS, DFINE_VARIANTS, DfineVariant
from rtdetr_tool.checkpoints.renames import count
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.dfine.model.encoder import stage_width

# Channels of the stem and of the first stage -> the backbone.
_BACKBONES = {(16, 64): "hgnetv2_b0", (32, 96): "hgnetv2_b2", (48, 128): "hgnetv2_b4", (64, 128): "hgnetv2_b5"}
_LAYERS = "decoder.decoder.layers."


def architecture_of_dfine(
    weights: Mapping[str, Tensor], given: Mapping[str, Any], source: str
) -> tuple[dict[str, Any], int]:
    """The spec's `model` fields that follow from tensors with our names, and the number of classes.

    Args:
        given: fields of `model.dfine` that are known from elsewhere; they decide what the tensors leave open.

    Raises:
        CheckpointError: a part is missing, or no published variant has this backbone.
    """
    try:
        row = _variant(weights, source)
        seen = _shapes(weights, row)
        classes = weights["decoder.enc_score_head.weight"].shape[0]
        if classes != weights["decoder.dec_score_head.0.weight"].shape[0]:
            raise CheckpointError(
                f"{source} selects its queries without classes (query_select_method agnostic), which is not supported."
            )
        total = weights[f"{_LAYERS}0.cross_attn.attention_weights.bias"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"{source} is not a complete D-FINE: it lacks {error.args[0]}.") from error
    points = list(given.get("num_points") or row.num_points)
    if DFINE_HEADS * sum(points) != total:
        raise CheckpointError(
            f"{source} samples {total} points per query, which does not match {DFINE_HEADS} heads with {points} points "
            "on its levels. Set model.dfine.num_points in a spec (-e)."
        )
    known = {name: given[name] for name in ("eval_idx", "reg_scale", "pe_order", "num_queries") if name in given}
    fields = {**known, **seen, "num_points": points}
    different = {name: value for name, value in fields.items() if value != _plain(getattr(row, name, None))}
    return {"arch": "dfine", "dfine": {"variant": row.name, **different}}, classes


def _variant(weights: Mapping[str, Tensor], source: str) -> DfineVariant:
    stem = weights["backbone.stem.stem4.conv.weight"].shape[0]
    first = weights["backbone.stages.0.blocks.0.aggregation.1.conv.weight"].shape[0]
    levels = count(weights, "encoder.input_proj.")
    backbone = _BACKBONES.get((stem, first))
    for row in DFINE_VARIANTS.values():
        if row.backbone == backbone and len(row.indices) == levels:
            return row
    raise CheckpointError(
        f"{source} has a backbone with {stem} channels in its stem and {first} in its first stage, and {levels} "
        "levels, which no published variant has; expected an HGNetV2 B0, B2, B4 or B5."
    )


def _shapes(weights: Mapping[str, Tensor], row: DfineVariant) -> dict[str, Any]:
    """Fields of `model.dfine` that follow from shapes; of several values with the same shape the variant's."""
    width = weights["encoder.input_proj.0.0.weight"].shape[0]
    stage = weights["encoder.fpn_blocks.0.cv2.1.conv.weight"].shape[0]
    blocks = count(weights, "encoder.fpn_blocks.0.cv2.0.bottlenecks.")
    layers = count(weights, _LAYERS)
    widths = [weights[f"decoder.dec_score_head.{index}.weight"].shape[1] for index in range(layers)]
    fields: dict[str, Any] = {
        "hidden_dim": width,
        "dim_feedforward": weights["encoder.encoder.0.layers.0.linear1.weight"].shape[0],
        "expansion": row.expansion if stage_width(width, row.expansion) == stage else 2 * stage / width,
        "depth_mult": row.depth_mult if round(3 * row.depth_mult) == blocks else blocks / 3,
        "dec_hidden_dim": widths[0],
        "dec_dim_feedforward": weights[f"{_LAYERS}0.linear1.weight"].shape[0],
        "dec_layers": layers,
    }
    bins = weights["decoder.dec_bbox_head.0.layers.2.weight"].shape[0] // 4
    if bins - 1 != 32:
        fields["reg_max"] = bins - 1
    if widths[-1] != widths[0]:
        fields |= {"layer_scale": widths[-1] / widths[0], "eval_idx": widths.index(widths[-1]) - 1}
    if "decoder.denoising_class_embed.weight" not in weights:
        fields["dn_number"] = 0
    return fields


def describe_dfine(model: Mapping[str, Any], classes: int) -> str:
    """One line about the architecture, for the log."""
    shown = {name: value for name, value in model["dfine"].items() if name != "variant" and value is not None}
    details = "".join(f", {name} {value}" for name, value in shown.items())
    return f"variant {model['dfine']['variant']}, {classes} classes{details}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
