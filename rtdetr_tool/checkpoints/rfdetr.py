"""Names of Roboflow's RF-DETR (rfdetr 1.x) and ours, and what its files say about themselves.

A file holds `model` (published weights, checkpoint_best_*.pth), or a Lightning `state_dict` with the prefix `model.`
(last.ckpt), and beside it `args` or `model_config`. Everything here is read from tensors and plain data; settings that
are Python objects (`argparse.Namespace`) stay unread, because the shapes say the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rtdetr_tool.catalog import DINOV2, PROJECTOR_SCALES, RFDETR_VARIANTS, RfdetrVariant
from rtdetr_tool.checkpoints.renames import count, to_ours, to_theirs
from rtdetr_tool.errors import CheckpointError

_VIT = "backbone.0.encoder.encoder."
_BLOCK = ("encoder.layer.*.", "blocks.*.")
# Hugging Face's names of DINOv2 -> ours, below `backbone.`.
DINOV2_TABLE: tuple[tuple[str, str], ...] = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.mask_token", "mask_token"),
    ("embeddings.register_tokens", "registers"),
    ("embeddings.position_embeddings", "position"),
    ("embeddings.patch_embeddings.projection.", "patch_embed."),
    ("layernorm.", "norm."),
    *(
        (f"{_BLOCK[0]}{theirs}", f"{_BLOCK[1]}{ours}")
        for theirs, ours in (
            ("attention.output.dense.", "attention.output."),
            ("attention.attention.", "attention."),
            ("layer_scale1.lambda1", "scale1"),
            ("layer_scale2.lambda1", "scale2"),
            ("norm1.", "norm1."),
            ("norm2.", "norm2."),
            ("mlp.", ""),
        )
    ),
)
_HEADS = ("class_embed.", "bbox_embed.", "refpoint_embed.", "query_feat.")
TABLE: tuple[tuple[str, str], ...] = (
    *((_VIT + theirs, f"backbone.{ours}") for theirs, ours in DINOV2_TABLE),
    ("backbone.0.projector.", "encoder."),
    ("transformer.decoder.", "decoder."),
    ("transformer.", "decoder."),
    *((name, f"decoder.{name}") for name in _HEADS),
)
# The reverse needs to know which of our decoder's parts stand where.
_BACK: tuple[tuple[str, str], ...] = (
    *TABLE[: len(DINOV2_TABLE) + 1],
    *((f"transformer.decoder.{name}.", f"decoder.{name}.") for name in ("layers", "norm", "ref_point_head")),
    *((name, f"decoder.{name}") for name in _HEADS),
    ("transformer.enc_", "decoder.enc_"),
)
_KEYPOINT_MASK = "_kp_active_mask"  # a buffer; empty for models without keypoints
_SHARED_HEAD = "transformer.decoder.bbox_embed."  # bbox_embed a second time, without lite_refpoint_refine
_WRAPPERS = ("model.", "module.", "_orig_mod.")
_LORA = "backbone.0.encoder.base_model.model."
# Parts that this tool does not build -> what they belong to.
_REFUSED = {
    "segmentation_head.": "a segmentation model",
    "keypoint_embed.": "a keypoint model",
    "transformer.enc_out_keypoint_embed.": "a keypoint model",
    "backbone.0.cross_attn_projector.": "a model with two projectors",
    "transformer.register_tokens": "decoder registers",
    _LORA: "LoRA adapters, which must be merged first",
}


def is_rfdetr(names: Mapping[str, Tensor]) -> bool:
    """Whether these are names of an RF-DETR as Roboflow's package writes them, wrapped or not."""
    plain = [unwrapped(name) for name in names]
    return any(name.startswith((_VIT, _LORA)) for name in plain) and "refpoint_embed.weight" in plain


def is_own_rfdetr(names: Mapping[str, Tensor]) -> bool:
    """Whether these are an RF-DETR's tensors by our names."""
    return "decoder.refpoint_embed.weight" in names and "backbone.position" in names


def unwrapped(name: str) -> str:
    """A tensor's name without what Lightning, DDP and torch.compile put before it."""
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name.replace("._orig_mod.", ".")


def from_rfdetr(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names for RF-DETR's; CheckpointError when a tensor has no counterpart."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        name = unwrapped(name)
        for start, what in _REFUSED.items():
            if name.startswith(start):
                raise CheckpointError(f"its {name} belongs to {what}, which this tool does not read")
        if not name.startswith(_SHARED_HEAD) and (name != _KEYPOINT_MASK or tensor.numel()):
            plain[name] = tensor
    return to_ours(plain, TABLE)


def to_rfdetr(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """RF-DETR's names for ours (models with `lite_refpoint_refine`, as all published ones are)."""
    renamed = to_theirs(weights, _BACK)
    return {**renamed, _KEYPOINT_MASK: torch.zeros(0, 0, dtype=torch.bool)}


def from_dinov2(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our backbone's names for DINOv2's weights as transformers publishes them."""
    names = {name.removeprefix("dinov2.").removeprefix("dinov2_with_registers."): t for name, t in state_dict.items()}
    return to_ours({name: t for name, t in names.items() if not name.startswith("classifier.")}, DINOV2_TABLE)


def architecture_of_rfdetr(
    weights: Mapping[str, Tensor], given: Mapping[str, Any] | None = None, source: str = "the file"
) -> tuple[dict[str, Any], int]:
    """The spec's `model` fields that tensors by our names settle, and the number of class logits.

    The variant is the published one with these shapes; where a shape differs from it, the field is named besides.
    Windows leave no trace, and taps and heads hardly any: the variant says them unless `given` (fields of
    `model.rfdetr`) does.
    """
    given = dict(given or {})
    try:
        seen = _shapes(weights)
        classes = weights["decoder.class_embed.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"{source} is not a whole RF-DETR: it lacks {error.args[0]}.") from error
    row = _nearest_variant(seen, given, source)
    rfdetr: dict[str, Any] = {"variant": row.name, **_sampling(weights, row, seen, given, source)}
    rfdetr |= {name: value for name, value in seen.items() if value != _plain(getattr(row, name, None))}
    for name in ("out_feature_indexes", "num_windows", "sa_nheads", "resolution"):
        if given.get(name) is not None:
            rfdetr[name] = given[name]
    taps = rfdetr.get("out_feature_indexes", row.out_feature_indexes)
    if len(taps) != _taps(weights, seen):
        raise CheckpointError(
            f"{source} reads {_taps(weights, seen)} maps of its ViT, variant {row.name} {len(taps)}: give "
            "model.rfdetr.out_feature_indexes in a spec (-e)"
        )
    return {"arch": "rfdetr", "rfdetr": rfdetr}, classes


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields of `model.rfdetr` that shapes say."""
    embed = weights["backbone.patch_embed.weight"]
    registers = weights["backbone.registers"].shape[1] if "backbone.registers" in weights else 0
    size = (embed.shape[0], count(weights, "backbone.blocks."), registers)
    encoder = next((row.name for row in DINOV2.values() if (row.width, row.depth, row.num_registers) == size), None)
    if encoder is None:
        raise CheckpointError(f"no encoder is known of width {size[0]} with {size[1]} blocks and {registers} registers")
    groups = count(weights, "decoder.enc_output.")
    return {
        "encoder": encoder,
        "projector_scale": _levels(weights),
        "hidden_dim": weights["decoder.class_embed.weight"].shape[1],
        "dec_layers": count(weights, "decoder.layers."),
        "num_queries": weights["decoder.refpoint_embed.weight"].shape[0] // groups,
        "patch_size": embed.shape[-1],
        "positional_encoding_size": round((weights["backbone.position"].shape[1] - 1) ** 0.5),
        "group_detr": groups,
    }


def _levels(weights: Mapping[str, Tensor]) -> list[str]:
    """P3 has transposed convolutions before its fusion, P5 strided ones, P4 none."""
    levels = []
    for index in range(count(weights, "encoder.stages.")):
        start = f"encoder.stages_sampling.{index}.0.0."
        scale = 2.0 if f"{start}weight" in weights else 0.5 if f"{start}conv.weight" in weights else 1.0
        levels.append(next(name for name, value in PROJECTOR_SCALES.items() if value == scale))
    return levels


def _taps(weights: Mapping[str, Tensor], seen: Mapping[str, Any]) -> int:
    inputs = weights["encoder.stages.0.0.cv1.conv.weight"].shape[1]
    width = DINOV2[seen["encoder"]].width
    return inputs // (width // 2 if seen["projector_scale"][0] == "P3" else width)


def _nearest_variant(seen: Mapping[str, Any], given: Mapping[str, Any], source: str) -> RfdetrVariant:
    """The one that is named, else the one with most of the shapes; patches tell how many windows there are."""
    if given.get("variant"):
        return RFDETR_VARIANTS[given["variant"]]

    def agreement(row: RfdetrVariant) -> int:
        return sum(_plain(getattr(row, name)) == value for name, value in seen.items() if hasattr(row, name))

    fitting = [row for row in RFDETR_VARIANTS.values() if row.patch_size == seen["patch_size"]]
    if not fitting:
        raise CheckpointError(
            f"{source} has patches of {seen['patch_size']} pixels, like no published RF-DETR (they have "
            f"{', '.join(map(str, sorted({row.patch_size for row in RFDETR_VARIANTS.values()})))}): give "
            "model.rfdetr.variant and model.rfdetr.num_windows in a spec (-e)"
        )
    return max(fitting, key=agreement)


def _sampling(
    weights: Mapping[str, Tensor], row: RfdetrVariant, seen: Mapping[str, Any], given: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """Heads and points: the tensors hold their product with the levels only."""
    total = weights["decoder.layers.0.cross_attn.attention_weights.bias"].shape[0] // len(seen["projector_scale"])
    heads = given.get("ca_nheads") or row.ca_nheads
    points = given.get("dec_n_points") or total // heads
    if heads * points != total:
        raise CheckpointError(
            f"{source} samples {total} points per query and level, which {heads} heads of {points} points do not: give "
            "model.rfdetr.ca_nheads and model.rfdetr.dec_n_points in a spec (-e)"
        )
    fields = {"ca_nheads": heads, "dec_n_points": points}
    return {name: value for name, value in fields.items() if value != getattr(row, name)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
