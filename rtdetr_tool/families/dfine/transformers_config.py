"""Convert `config.json` of Hugging Face transformers' D-FINE to spec fields and back.

The keys are those of `DFineConfig`; the third column of the tables is their default, because files may omit it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rtdetr_tool.catalog import DFINE_HEADS, DFINE_VARIANTS
from rtdetr_tool.checkpoints.transformers_files import label_fields, unlike
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.dfine.model.distribution import UP

MODEL_TYPE = "d_fine"

# (transformers, our field of `model.dfine`, transformers' default): what tensors do not show ...
_TABLE: tuple[tuple[str, str, Any], ...] = (
    ("reg_scale", "reg_scale", 4.0),
    ("num_queries", "num_queries", 300),
    ("num_denoising", "dn_number", 100),
    ("label_noise_ratio", "label_noise_ratio", 0.5),
    ("box_noise_scale", "box_noise_scale", 1.0),
    ("focal_loss_alpha", "alpha", 0.75),
    ("focal_loss_gamma", "gamma", 2.0),
    ("weight_loss_vfl", "vfl_loss_coef", 1.0),
    ("weight_loss_fgl", "fgl_loss_coef", 0.15),
    ("weight_loss_ddf", "ddf_loss_coef", 1.5),
)
# ... what they show, ...
_SHAPES = (
    ("encoder_hidden_dim", "hidden_dim"),
    ("encoder_ffn_dim", "dim_feedforward"),
    ("hidden_expansion", "expansion"),
    ("depth_mult", "depth_mult"),
    ("d_model", "dec_hidden_dim"),
    ("decoder_ffn_dim", "dec_dim_feedforward"),
    ("decoder_layers", "dec_layers"),
    ("max_num_bins", "reg_max"),
)
# ... and fields of `model`.
_SHARED: tuple[tuple[str, str, Any], ...] = (
    ("auxiliary_loss", "aux_loss", True),
    ("matcher_class_cost", "class_cost", 2.0),
    ("matcher_bbox_cost", "bbox_cost", 5.0),
    ("matcher_giou_cost", "giou_cost", 2.0),
    ("weight_loss_bbox", "bbox_loss_coef", 5.0),
    ("weight_loss_giou", "giou_loss_coef", 2.0),
)
# Options of which only these values are supported; the first one is transformers' default.
_FIXED: dict[str, tuple[Any, ...]] = {
    "normalize_before": (False,),
    "learn_initial_query": (False,),
    "with_box_refine": (True,),
    "encoder_layers": (1,),
    "encoder_attention_heads": (DFINE_HEADS,),
    "decoder_attention_heads": (DFINE_HEADS,),
    "encoder_activation_function": ("gelu",),
    "activation_function": ("silu",),
    "decoder_activation_function": ("relu",),
    "positional_encoding_temperature": (10000,),
    "layer_norm_eps": (1e-5,),
    "batch_norm_eps": (1e-5,),
    "layer_scale": (1.0,),
    "top_prob_values": (4,),
    "lqe_hidden_dim": (64,),
    "lqe_layers": (2,),
    "decoder_offset_scale": (0.5,),
    "decoder_method": ("default",),
    "up": (UP,),
}
# Stem, widths inside and after the stages, and the number of layers in each block of a backbone.
_BACKBONES: dict[str, tuple[list[int], list[int], list[int], list[int], int]] = {
    "hgnetv2_b0": ([3, 16, 16], [16, 32, 64, 128], [64, 256, 512, 1024], [1, 1, 2, 1], 3),
    "hgnetv2_b2": ([3, 24, 32], [32, 64, 128, 256], [96, 384, 768, 1536], [1, 1, 3, 1], 4),
    "hgnetv2_b4": ([3, 32, 48], [48, 96, 192, 384], [128, 512, 1024, 2048], [1, 1, 3, 1], 6),
    "hgnetv2_b5": ([3, 32, 64], [64, 128, 256, 512], [128, 512, 1024, 2048], [1, 2, 5, 2], 6),
}
_WITH_AFFINE = ("hgnetv2_b0", "hgnetv2_b2")


def model_fields(config: Mapping[str, Any], source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of `model.dfine` and of `model` for a `config.json`; the shapes of tensors decide the others.

    Raises:
        CheckpointError: another network or unsupported options.
    """
    kind = config.get("model_type")
    if kind != MODEL_TYPE:
        raise CheckpointError(f"{source} has model_type {kind!r}; expected {MODEL_TYPE} (D-FINE).")
    layers = config.get("decoder_layers", 6)
    problems = unlike(config, {**_FIXED, "eval_idx": (-1, layers - 1)})
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise CheckpointError(f"{source} has unsupported options:\n{lines}")
    fields = {native: config.get(foreign, default) for foreign, native, default in _TABLE}
    points = config.get("decoder_n_points", 4)
    levels = config.get("num_feature_levels", 3)
    fields["num_points"] = list(points) if isinstance(points, (list, tuple)) else [points] * levels
    shared = {native: config.get(foreign, default) for foreign, native, default in _SHARED}
    return fields, {**shared, "num_select": fields["num_queries"]}


def config_for(
    fields: Mapping[str, Any], model: Mapping[str, Any], names: Mapping[int, str], num_classes: int
) -> dict[str, Any]:
    """A `config.json` for `model` and `fields`, which is `model.dfine` without nulls.

    The detector must end with the layer that predicts.
    """
    row = DFINE_VARIANTS[fields["variant"]]
    _, _, outputs, _, _ = _BACKBONES[row.backbone]
    levels = len(row.indices)
    return {
        "architectures": ["DFineForObjectDetection"],
        "model_type": MODEL_TYPE,
        "backbone_config": _backbone_config(row.backbone, row.indices),
        "freeze_backbone_batch_norms": freezes_norms(fields),
        **{name: values[0] for name, values in _FIXED.items()},
        **{foreign: fields[native] for foreign, native, _ in _TABLE},
        **{foreign: fields[native] for foreign, native in _SHAPES},
        **{foreign: model[native] for foreign, native, _ in _SHARED},
        "eval_idx": -1,
        "encoder_in_channels": [outputs[index] for index in row.indices],
        "decoder_in_channels": [fields["hidden_dim"]] * levels,
        "feat_strides": [4 * 2**index for index in row.indices],
        "encode_proj_layers": [levels - 1],
        "num_feature_levels": levels,
        "decoder_n_points": fields["num_points"],
        **label_fields(names, num_classes),
    }


def freezes_norms(fields: Mapping[str, Any]) -> bool:
    """`freeze_backbone_batch_norms`; null means the recipe of the variant."""
    frozen = fields.get("freeze_norm")
    return DFINE_VARIANTS[fields["variant"]].frozen if frozen is None else bool(frozen)


def _backbone_config(name: str, indices: tuple[int, ...]) -> dict[str, Any]:
    stem, inner, outputs, blocks, layers = _BACKBONES[name]
    return {
        "model_type": "hgnet_v2",
        "stem_channels": stem,
        "embedding_size": stem[-1],
        "hidden_sizes": outputs,
        "depths": blocks,
        "stage_in_channels": [stem[-1], *outputs[:-1]],
        "stage_mid_channels": inner,
        "stage_out_channels": outputs,
        "stage_num_blocks": blocks,
        "stage_numb_of_layers": [layers] * 4,
        "use_learnable_affine_block": name in _WITH_AFFINE,
        "out_features": [f"stage{index + 1}" for index in indices],
        "out_indices": [index + 1 for index in indices],
    }
