"""What an RF-DETR's file says about its architecture: by the shapes of its tensors and, besides, by `args` or
`model_config`, which the package keeps beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rtdetr_tool.catalog import COCO_CATEGORIES, DINOV2, PROJECTOR_SCALES, RFDETR_VARIANTS, RfdetrVariant
from rtdetr_tool.checkpoints.renames import count
from rtdetr_tool.errors import CheckpointError

# What a file may state that shapes do not tell, with its type.
_STATED: dict[str, type] = {
    "out_feature_indexes": list, "sa_nheads": int, "ca_nheads": int, "dec_n_points": int, "num_windows": int,
    "resolution": int, "bbox_reparam": bool, "lite_refpoint_refine": bool, "mask_downsample_ratio": int,
}  # fmt: skip
_FEED_FORWARD = 2048
_ON = ("bbox_reparam", "lite_refpoint_refine")  # true unless stated otherwise
# How a name tells the variant, where shapes leave a choice; first match wins.
_WORDS = (
    ("2xlarge", "2xlarge"), ("xxlarge", "2xlarge"), ("xlarge", "xlarge"), ("large", "large"), ("medium", "medium"),
    ("small", "small"), ("nano", "nano"), ("base", "base"),
)  # fmt: skip


def settings_of(payload: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Fields of `model.rfdetr` that the file states in `model_config` or `args`, and the variant's name as a hint.

    Both are plain data here: an `argparse.Namespace` has been read as a dictionary, without running anything.
    """
    stated: dict[str, Any] = {}
    for section in ("args", "model_config"):
        inner = payload.get(section)
        stated |= {n: v for n, v in inner.items() if v is not None} if isinstance(inner, Mapping) else {}
    found = {name: stated[name] for name, kind in _STATED.items() if isinstance(stated.get(name), kind)}
    text = " ".join(str(item) for item in (payload.get("model_name"), stated.get("pretrain_weights"), source))
    return {**found, "hint": text.lower()}


def classes_of(payload: Mapping[str, Any], classes: int) -> list[dict[str, Any]]:
    """The file's classes in the form of our metadata: the names that its `args` keep, by class index.

    With 91 class logits and COCO's 80 names (or none) they are COCO's, whose class index is the category id.
    """
    args = payload.get("args")
    stated = args.get("class_names") if isinstance(args, Mapping) else None
    names = [str(name) for name in stated] if isinstance(stated, (list, tuple)) else []
    if classes == max(COCO_CATEGORIES) + 1 and names in ([], list(COCO_CATEGORIES.values())):
        return [{"index": number, "id": number, "name": name} for number, name in COCO_CATEGORIES.items()]
    return [{"index": index, "id": None, "name": name} for index, name in enumerate(names) if index < classes]


def describe_rfdetr(model: Mapping[str, Any], classes: int) -> str:
    """The architecture in a line."""
    others = ", ".join(f"{name} {value}" for name, value in model["rfdetr"].items() if name != "variant")
    return f"variant {model['rfdetr']['variant']}, {classes} class logits{', ' if others else ''}{others}"


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
    for name in (*_STATED, "drop_path"):
        value = given.get(name)
        if value is not None and name not in seen and value != _plain(getattr(row, name, name in _ON)):
            rfdetr[name] = value
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
        "segmentation_head": "segmentation_head.bias" in weights,
        **_feed_forward(weights["decoder.layers.0.linear1.weight"].shape[0]),
    }


def _feed_forward(width: int) -> dict[str, int]:
    """Named only where it is not the one that all published models have."""
    return {} if width == _FEED_FORWARD else {"dim_feedforward": width}


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
    hint = str(given.get("hint", ""))
    named = next((name for word, name in _WORDS if word in hint), None)
    return max(fitting, key=lambda row: (agreement(row), row.name == named))


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
