"""Derive the architecture of an RF-DETR from a checkpoint: from the shapes of its tensors, and from the `args` or
`model_config` that Roboflow's package stores with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rtdetr_tool.catalog import COCO_CATEGORIES, CONVNEXT, ENCODERS, PROJECTOR_SCALES, RFDETR_VARIANTS, RfdetrVariant
from rtdetr_tool.checkpoints.renames import count, split_by_prefix
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rfdetr.encoders import encoder_of

# Fields that a file may state and that shapes do not show, with their types.
_STATED: dict[str, type] = {
    "out_feature_indexes": list, "sa_nheads": int, "ca_nheads": int, "dec_n_points": int, "num_windows": int,
    "resolution": int, "bbox_reparam": bool, "lite_refpoint_refine": bool, "mask_downsample_ratio": int,
    "dual_projector_kp_only": bool, "postprocess_trace_alpha": float,
}  # fmt: skip
_FEED_FORWARD = 2048
_PERSON = 1  # COCO's category
# Of all published models.
_KEYPOINT_DEFAULTS = {
    "grouppose_keypoint_dim_downscale": 1, "keypoint_cross_attn": True, "inter_instance_kp_attn": False,
}  # fmt: skip
# What holds unless the file states it; null for all others.
_DEFAULTS = {
    "bbox_reparam": True, "lite_refpoint_refine": True, "mask_downsample_ratio": 4, "postprocess_trace_alpha": 0.2,
    "drop_path": 0.0,
}  # fmt: skip
# Parts of names that indicate the variant if several match the shapes; the first match wins.
_WORDS = (
    ("2xlarge", "2xlarge"), ("xxlarge", "2xlarge"), ("xlarge", "xlarge"), ("large", "large"), ("medium", "medium"),
    ("small", "small"), ("nano", "nano"), ("base", "base"),
)  # fmt: skip


def settings_of(payload: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Fields of `model.rfdetr` in the file's `model_config` or `args`, and names as a hint at the variant.

    Both are plain data here: an `argparse.Namespace` has been loaded as a dictionary, without running code.
    """
    stated: dict[str, Any] = {}
    for section in ("args", "model_config"):
        inner = payload.get(section)
        stated |= {n: v for n, v in inner.items() if v is not None} if isinstance(inner, Mapping) else {}
    fields = {name: stated[name] for name, kind in _STATED.items() if isinstance(stated.get(name), kind)}
    text = " ".join(str(item) for item in (payload.get("model_name"), stated.get("pretrain_weights"), source))
    return {**fields, "hint": text.lower()}


def classes_of(payload: Mapping[str, Any], classes: int, weights: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """The file's classes in the form of our metadata: the names in its `args` by class index.

    With 91 class logits and COCO's 80 names (or none) they are COCO's classes, with the category id as class index.
    With keypoints they are only persons, at the first index that has any.
    """
    args = payload.get("args")
    stated = args.get("class_names") if isinstance(args, Mapping) else None
    names = [str(name) for name in stated] if isinstance(stated, (list, tuple)) else []
    if classes == max(COCO_CATEGORIES) + 1 and names in ([], list(COCO_CATEGORIES.values())):
        if "decoder.keypoint_active" in weights:
            counts = weights["decoder.keypoint_active"].sum(1).tolist()
            first = next((index for index, count in enumerate(counts) if count), 0)
            return [{"index": first, "id": _PERSON, "name": COCO_CATEGORIES[_PERSON]}]
        return [{"index": number, "id": number, "name": name} for number, name in COCO_CATEGORIES.items()]
    return [{"index": index, "id": None, "name": name} for index, name in enumerate(names) if index < classes]


def describe_rfdetr(model: Mapping[str, Any], classes: int) -> str:
    """One line about the architecture, for the log."""
    details = ", ".join(f"{name} {value}" for name, value in model["rfdetr"].items() if name != "variant")
    return f"variant {model['rfdetr']['variant']}, {classes} class logits{', ' if details else ''}{details}"


def architecture_of_rfdetr(
    weights: Mapping[str, Tensor], given: Mapping[str, Any] | None = None, source: str = "the file"
) -> tuple[dict[str, Any], int]:
    """The spec's `model` fields that follow from tensors with our names, and the number of class logits.

    The variant is the published one with these shapes; fields whose shape differs from it are added. Windows do not
    show in the tensors, output blocks and heads only partly: they are those of `given` (fields of `model.rfdetr`) or of
    the variant.
    """
    given = dict(given or {})
    try:
        seen = _shapes(weights)
        classes = weights["decoder.class_embed.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"{source} is not a complete RF-DETR: it lacks {error.args[0]}.") from error
    row = _nearest_variant(seen, given, source)
    rfdetr: dict[str, Any] = {"variant": row.name, **_sampling(weights, row, seen, given, source)}
    published = row._asdict()
    rfdetr |= {name: value for name, value in seen.items() if value != _plain(published.get(name))}
    for name in (*_STATED, "drop_path"):
        value = given.get(name)
        if value is not None and name not in seen and value != _plain(published.get(name, _DEFAULTS.get(name))):
            rfdetr[name] = value
    indices, maps = rfdetr.get("out_feature_indexes", row.out_feature_indexes), _feature_maps(weights, seen)
    if ENCODERS[seen["encoder"]].kind != CONVNEXT and len(indices) != maps:
        raise CheckpointError(
            f"{source} uses {maps} feature maps of its ViT, but variant {row.name} {len(indices)}. Set "
            "model.rfdetr.out_feature_indexes in a spec (-e)."
        )
    return {"arch": "rfdetr", "rfdetr": rfdetr}, classes


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields of `model.rfdetr` that follow from shapes."""
    backbone = split_by_prefix(weights, "backbone.")[0]
    encoder = encoder_of(backbone)
    groups, levels = count(weights, "decoder.enc_output."), _levels(weights)
    stages = {"out_feature_indexes": _stages(weights, levels, encoder.width)} if encoder.kind == CONVNEXT else {}
    return {
        "encoder": encoder.name,
        **stages,
        "projector_scale": levels,
        "hidden_dim": weights["decoder.class_embed.weight"].shape[1],
        "dec_layers": count(weights, "decoder.layers."),
        "num_queries": weights["decoder.refpoint_embed.weight"].shape[0] // groups,
        **_patches(backbone),
        "group_detr": groups,
        "segmentation_head": "segmentation_head.bias" in weights,
        "dual_projector": "second_encoder.stages.0.1.weight" in weights,
        **_keypoints(weights),
        **_feed_forward(weights["decoder.layers.0.linear1.weight"].shape[0]),
    }


def _patches(backbone: Mapping[str, Tensor]) -> dict[str, int]:
    """Fields of a ViT's embeddings."""
    fields = {}
    if "patch_embed.weight" in backbone:
        fields["patch_size"] = backbone["patch_embed.weight"].shape[-1]
    if "position" in backbone:
        fields["positional_encoding_size"] = round((backbone["position"].shape[1] - 1) ** 0.5)
    return fields


def _keypoints(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields of a keypoint head."""
    if "decoder.keypoint_active" not in weights:
        return {"use_grouppose_keypoints": False}
    layer = "decoder.layers.0."
    total, width = weights["decoder.keypoint_pos_embed"].shape
    fields = {
        "grouppose_keypoint_dim_downscale": weights["decoder.class_embed.weight"].shape[1] // width,
        "keypoint_cross_attn": f"{layer}kp_cross_attn_norm.weight" in weights,
        "inter_instance_kp_attn": f"{layer}inter_inst_kp_norm.weight" in weights,
    }
    differing = {name: value for name, value in fields.items() if value != _KEYPOINT_DEFAULTS[name]}
    active = weights["decoder.keypoint_active"]
    classes, most = active.shape
    counts = [most] * classes if classes * most == total else active.sum(1).tolist()
    return {"use_grouppose_keypoints": True, "num_keypoints_per_class": counts, **differing}


def _feed_forward(width: int) -> dict[str, int]:
    """Only included if it differs from that of all published models."""
    return {} if width == _FEED_FORWARD else {"dim_feedforward": width}


def _levels(weights: Mapping[str, Tensor]) -> list[str]:
    """P3 has transposed convolutions before its fusion, P5 strided ones, P4 none."""
    levels = []
    for index in range(count(weights, "encoder.stages.")):
        start = f"encoder.stages_sampling.{index}.0.0."
        scale = 2.0 if f"{start}weight" in weights else 0.5 if f"{start}conv.weight" in weights else 1.0
        levels.append(next(name for name, value in PROJECTOR_SCALES.items() if value == scale))
    return levels


def _feature_maps(weights: Mapping[str, Tensor], seen: Mapping[str, Any]) -> int:
    """The number of feature maps of the ViT that the projector reads."""
    return _projector_inputs(weights, seen["projector_scale"]) // ENCODERS[seen["encoder"]].width


def _stages(weights: Mapping[str, Tensor], levels: list[str], width: int) -> list[int]:
    """The numbers of a ConvNeXt's stages that the projector reads, each twice as wide as the one before."""
    sum_of_widths = _projector_inputs(weights, levels) // width
    return [number for number in range(1, 5) if sum_of_widths >> (number - 1) & 1]


def _projector_inputs(weights: Mapping[str, Tensor], levels: list[str]) -> int:
    """The number of channels of all feature maps of the backbone that the projector reads."""
    inputs: int = weights["encoder.stages.0.0.cv1.conv.weight"].shape[1]
    return 2 * inputs if levels[0] == "P3" else inputs  # transposed convolutions halve the channels


def _nearest_variant(seen: Mapping[str, Any], given: Mapping[str, Any], source: str) -> RfdetrVariant:
    """The named variant, or else the one with the most matching shapes among those with the same patch size."""
    if given.get("variant"):
        return RFDETR_VARIANTS[given["variant"]]

    def agreement(row: RfdetrVariant) -> int:
        published = row._asdict()
        return sum(_plain(published[name]) == value for name, value in seen.items() if name in published)

    patch_size = seen.get("patch_size")
    fitting = [row for row in RFDETR_VARIANTS.values() if patch_size in (None, row.patch_size)]
    if not fitting:
        raise CheckpointError(
            f"{source} has patches of {patch_size} pixels, but published variants have "
            f"{', '.join(map(str, sorted({row.patch_size for row in RFDETR_VARIANTS.values()})))}. Set "
            "model.rfdetr.variant and model.rfdetr.num_windows in a spec (-e)."
        )
    hint = str(given.get("hint", ""))
    named = next((name for word, name in _WORDS if word in hint), None)
    return max(fitting, key=lambda row: (agreement(row), row.name == named))


def _sampling(
    weights: Mapping[str, Tensor], row: RfdetrVariant, seen: Mapping[str, Any], given: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """Heads and points, of which the tensors only show the product with the number of levels."""
    total = weights["decoder.layers.0.cross_attn.attention_weights.bias"].shape[0] // len(seen["projector_scale"])
    heads = given.get("ca_nheads") or row.ca_nheads
    points = given.get("dec_n_points") or total // heads
    if heads * points != total:
        raise CheckpointError(
            f"{source} samples {total} points per query and level, which does not match {heads} heads of {points} "
            "points. Set model.rfdetr.ca_nheads and model.rfdetr.dec_n_points in a spec (-e)."
        )
    fields = {"ca_nheads": heads, "dec_n_points": points}
    return {name: value for name, value in fields.items() if value != getattr(row, name)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
