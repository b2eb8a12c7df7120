"""Convert `config.json` of Hugging Face transformers' RT-DETR to spec fields and back.

The keys are those of `RTDetrConfig` and `RTDetrV2Config`; the third column of the table is their default, because files
may omit default values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rtdetr_tool.catalog import BACKBONES, FREEZING, FROM_DETECTOR
from rtdetr_tool.checkpoints.transformers_files import label_fields, unlike
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rtdetr.architecture import RESNETS

V1, V2 = "rt_detr", "rt_detr_v2"
TIMM_BACKBONE = "timm_backbone"

# (transformers, our `model` field, transformers' default)
TABLE: tuple[tuple[str, str, Any], ...] = (
    ("num_feature_levels", "num_feature_levels", 3),
    ("feat_strides", "feat_strides", [8, 16, 32]),
    ("decoder_in_channels", "feat_channels", [256, 256, 256]),
    ("encode_proj_layers", "use_encoder_idx", [2]),
    ("encoder_hidden_dim", "hidden_dim", 256),
    ("encoder_attention_heads", "nheads", 8),
    ("encoder_layers", "enc_layers", 1),
    ("encoder_ffn_dim", "dim_feedforward", 1024),
    ("encoder_activation_function", "enc_act", "gelu"),
    ("activation_function", "act", "silu"),
    ("positional_encoding_temperature", "pe_temperature", 10000),
    ("hidden_expansion", "expansion", 1.0),
    ("dropout", "dropout_ratio", 0.0),
    ("d_model", "dec_hidden_dim", 256),
    ("decoder_ffn_dim", "dec_dim_feedforward", 1024),
    ("decoder_layers", "dec_layers", 6),
    ("num_queries", "num_queries", 300),
    ("num_denoising", "dn_number", 100),
    ("label_noise_ratio", "label_noise_ratio", 0.5),
    ("box_noise_scale", "box_noise_scale", 1.0),
    ("freeze_backbone_batch_norms", "freeze_norm", True),
    ("auxiliary_loss", "aux_loss", True),
    ("matcher_class_cost", "class_cost", 2.0),
    ("matcher_bbox_cost", "bbox_cost", 5.0),
    ("matcher_giou_cost", "giou_cost", 2.0),
    ("focal_loss_alpha", "alpha", 0.75),
    ("focal_loss_gamma", "gamma", 2.0),
    ("weight_loss_vfl", "vfl_loss_coef", 1.0),
    ("weight_loss_bbox", "bbox_loss_coef", 5.0),
    ("weight_loss_giou", "giou_loss_coef", 2.0),
)
# Version 2 only.
TABLE_V2 = (("decoder_method", "cross_attn_method", "default"), ("decoder_offset_scale", "offset_scale", 0.5))
# Options of which only these values are supported; the first one is transformers' default.
_FIXED: dict[str, tuple[Any, ...]] = {
    "normalize_before": (False,),
    "learn_initial_query": (False,),
    "with_box_refine": (True,),
    "decoder_activation_function": ("relu",),
    "layer_norm_eps": (1e-5,),
    "batch_norm_eps": (1e-5,),
}
_FIXED_BACKBONE: dict[str, tuple[Any, ...]] = {
    "model_type": ("rt_detr_resnet",),
    "embedding_size": (64,),
    "hidden_act": ("relu",),
    "downsample_in_first_stage": (False,),
    "downsample_in_bottleneck": (False,),
}
_WIDTHS = {"basic": [64, 128, 256, 512], "bottleneck": [256, 512, 1024, 2048]}
_ACTIVATIONS = ("relu", "gelu", "silu", "leaky_relu")


def model_fields(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Fields of our `model` section for a `config.json`.

    Raises:
        CheckpointError: another network or unsupported options.
    """
    version = config.get("model_type")
    if version not in (V1, V2):
        raise CheckpointError(f"{source} has model_type {version!r}; expected {V1} or {V2} (RT-DETR).")
    problems = unlike(config, _FIXED)
    fields = {native: config.get(foreign, default) for foreign, native, default in TABLE}
    if version == V2:
        fields |= {native: config.get(foreign, default) for foreign, native, default in TABLE_V2}
    fields["num_points"] = [config.get("decoder_n_points", 4)]
    for name in ("feat_strides", "feat_channels", "use_encoder_idx"):
        fields[name] = list(fields[name])
    heads = config.get("decoder_attention_heads", 8)
    if heads != fields["nheads"]:
        problems.append(f"decoder_attention_heads: {heads}; expected {fields['nheads']}, the encoder_attention_heads")
    for native, same in (("dec_hidden_dim", "hidden_dim"), ("dec_dim_feedforward", "dim_feedforward")):
        if fields[native] == fields[same]:
            del fields[native]
    fields |= {"num_select": fields["num_queries"], "eval_idx": -1}
    fields |= _backbone(config, problems)
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise CheckpointError(f"{source} has unsupported options:\n{lines}")
    return fields


def config_for(model: Mapping[str, Any], names: Mapping[int, str], num_classes: int, version: str) -> dict[str, Any]:
    """A `config.json` for our `model` section.

    Raises:
        CheckpointError: fields without a counterpart in transformers' RT-DETR, which the message lists.
    """
    problems = [*_without_counterpart(model, version)]
    backbone = _backbone_config(model["backbone"], model["return_interm_indices"], problems)
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise CheckpointError(f"The RT-DETR of Hugging Face transformers does not support:\n{lines}")
    channels = BACKBONES[model["backbone"]].channels
    filled = {**model, "dec_hidden_dim": model.get("dec_hidden_dim") or model["hidden_dim"],
              "dec_dim_feedforward": model.get("dec_dim_feedforward") or model["dim_feedforward"],
              "freeze_norm": freezes_norms(model)}  # fmt: skip
    return {
        "architectures": ["RTDetrForObjectDetection" if version == V1 else "RTDetrV2ForObjectDetection"],
        "model_type": version,
        "backbone_config": backbone,
        **{foreign: filled[native] for foreign, native, _ in TABLE},
        **({foreign: model[native] for foreign, native, _ in TABLE_V2} if version == V2 else {}),
        **({"decoder_n_levels": model["num_feature_levels"]} if version == V2 else {}),
        **{name: values[0] for name, values in _FIXED.items()},
        "decoder_n_points": model["num_points"][0],
        "decoder_attention_heads": model["nheads"],
        "encoder_in_channels": [channels[index] for index in model["return_interm_indices"]],
        **label_fields(names, num_classes),
    }


def freezes_norms(model: Mapping[str, Any]) -> bool:
    """`freeze_backbone_batch_norms` for our `model` section, in which null means the recipe of the backbone."""
    frozen = model.get("freeze_norm")
    return model["backbone"] in FREEZING.get(FROM_DETECTOR, ()) if frozen is None else bool(frozen)


def version_for(model: Mapping[str, Any]) -> str:
    """The version that a detector requires: 2 if it uses options that version 1 does not have."""
    return V2 if model["cross_attn_method"] != "default" or model["offset_scale"] != 0.5 else V1


def _without_counterpart(model: Mapping[str, Any], version: str) -> list[str]:
    problems = []
    if (model.get("frozen_fm") or {}).get("enabled"):
        problems.append("model.frozen_fm.enabled: true; expected false")
    for name in ("enc_act", "act"):
        if model[name] not in _ACTIVATIONS:
            problems.append(f"model.{name}: {model[name]}; expected one of {', '.join(_ACTIVATIONS)}")
    if model["depth_mult"] != 1:
        problems.append(f"model.depth_mult: {model['depth_mult']}; expected 1")
    if len(set(model["num_points"])) > 1:
        problems.append(f"model.num_points: {model['num_points']}; expected one number for all levels")
    if version == V1 and version_for(model) == V2:
        problems.append(
            "model.cross_attn_method and model.offset_scale: not supported in version 1; expected the defaults"
        )
    return problems


def _backbone_config(name: str, stages: Sequence[int], problems: list[str]) -> dict[str, Any]:
    """transformers' own ResNet-d, or its wrapper for timm's plain ResNet."""
    outputs = [stage + 1 for stage in stages]
    for (bottleneck, blocks), depth in RESNETS.items():
        kind = "bottleneck" if bottleneck else "basic"
        if name == f"resnet_{depth}d":
            return {
                "model_type": "rt_detr_resnet", "layer_type": kind, "depths": list(blocks), "embedding_size": 64,
                "hidden_sizes": _WIDTHS[kind], "out_features": [f"stage{stage}" for stage in outputs],
                "out_indices": outputs,
            }  # fmt: skip
        if name == f"resnet_{depth}":
            return {
                "model_type": TIMM_BACKBONE, "backbone": f"resnet{depth}", "features_only": True, "num_channels": 3,
                "use_pretrained_backbone": False, "out_indices": outputs,
            }  # fmt: skip
    problems.append(f"model.backbone: {name}; expected resnet_18, resnet_34, resnet_50, resnet_101 or their d variants")
    return {}


def _backbone(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Our fields for the backbone of a `config.json`; unsupported options are added to `problems`."""
    inner = config.get("backbone_config")
    if not inner:  # as written before transformers 5
        options = config.get("backbone_kwargs") or {}
        kind = TIMM_BACKBONE if config.get("use_timm_backbone") else config.get("backbone")
        inner = {**options, "model_type": kind, "backbone": config.get("backbone")}
    if inner.get("model_type") == TIMM_BACKBONE:
        return _timm_backbone(inner, problems)
    if wrong := unlike(inner, _FIXED_BACKBONE, "backbone_config."):
        problems += wrong
        return {}
    kind, depths = inner.get("layer_type", "bottleneck"), tuple(inner.get("depths", (3, 4, 6, 3)))
    widths = list(inner.get("hidden_sizes", _WIDTHS["bottleneck"]))
    depth = RESNETS.get((kind == "bottleneck", depths))
    if depth is None or widths != _WIDTHS.get(kind):
        problems.append(
            f"backbone_config: {kind} blocks, depths {list(depths)}, hidden_sizes {widths}; expected a ResNet"
        )
        return {}
    stages, numbers = inner.get("out_features"), inner.get("out_indices") or [2, 3, 4]
    indices = [int(name.removeprefix("stage")) - 1 for name in stages] if stages else [i - 1 for i in numbers]
    return {"backbone": f"resnet_{depth}d", "return_interm_indices": indices}


def _timm_backbone(inner: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    name = str(inner.get("backbone", "")).partition(".")[0].removeprefix("timm/")  # without the tag of its weights
    row = next((row for row in BACKBONES.values() if row.family == "resnet" and row.timm_name == name), None)
    if row is None:
        problems.append(f"backbone_config.backbone: {inner.get('backbone')!r}; expected a ResNet of timm")
        return {}
    return {"backbone": row.name, "return_interm_indices": [i - 1 for i in inner.get("out_indices") or [2, 3, 4]]}
