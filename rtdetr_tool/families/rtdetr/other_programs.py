"""Write an RT-DETR as the official repository and NVIDIA TAO save it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdetr_tool.catalog import BACKBONES
from rtdetr_tool.checkpoints.backbone_names import tao_backbone_names
from rtdetr_tool.checkpoints.identify import TAO_MODEL, TAO_PREFIX
from rtdetr_tool.checkpoints.io import save_checkpoint
from rtdetr_tool.checkpoints.official_names import NECK_TABLE, POINT_SHARES
from rtdetr_tool.checkpoints.renames import split_by_prefix, to_foreign
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rtdetr.official import backbone_table
from rtdetr_tool.ops.anchors import square_anchors

_BACKBONE = "backbone."
_COUNTER = ".num_batches_tracked"
_TAO_LIGHTNING = "2.5.0.post0"  # the version with which TAO 6.25 writes its checkpoints
# What is fixed in the decoder of both programs, and further in that of TAO and of version 1.
_TAO_DECODER = {"nheads": 8, "num_points": [4], "cross_attn_method": "default", "offset_scale": 0.5}


def write_official(target: Path, weights: Mapping[str, Tensor], meta: Mapping[str, Any]) -> list[str]:
    """Write `{"model": ...}` with the names of version 1, or of version 2 if the weights come from there or need it.

    Raises:
        CheckpointError: the detector has parts that the official code does not have.
    """
    model, dataset = meta["spec"]["model"], meta["spec"]["dataset"]
    _refuse(_official_problems(model), "official", target)
    version_2 = (meta.get("origin") or {}).get("version") == 2 or any(
        model[name] != value for name, value in _TAO_DECODER.items() if name != "nheads"
    )
    backbone, neck = split_by_prefix(weights, _BACKBONE)
    named = to_foreign(backbone, backbone_table(deep_stem="conv1.6.weight" in backbone))
    tensors = {f"{_BACKBONE}{name}": tensor for name, tensor in named.items()}
    tensors |= to_foreign(neck, NECK_TABLE) if version_2 else neck
    if version_2:
        tensors |= _constants(model, dataset["augmentation"]["eval_spatial_size"], len(model["feat_strides"]))
    save_checkpoint({"model": tensors}, target)
    notes = _position_notes(model["pe_order"], dataset["augmentation"], target)
    return [*notes, f"{target} has the names of version {1 + version_2}; class names are not part of the format"]


def write_tao(target: Path, weights: Mapping[str, Tensor], meta: Mapping[str, Any]) -> list[str]:
    """Write a Lightning checkpoint with TAO's names and without the metadata of this tool.

    Raises:
        CheckpointError: the detector has parts that TAO does not have.
    """
    model, dataset = meta["spec"]["model"], meta["spec"]["dataset"]
    _refuse(_tao_problems(model), "tao", target)
    backbone, neck = split_by_prefix(weights, _BACKBONE)
    family = BACKBONES[model["backbone"]].family
    if family == "resnet":  # its norms are frozen in TAO, and count no batches
        backbone = {name: tensor for name, tensor in backbone.items() if not name.endswith(_COUNTER)}
    renamed, missing = tao_backbone_names(backbone, model["backbone"], family)
    tensors = {f"{_BACKBONE}{name}": tensor for name, tensor in renamed.items()} | neck
    save_checkpoint(
        {
            "state_dict": {f"{TAO_PREFIX}{name}": tensor for name, tensor in tensors.items()},
            "epoch": 0,
            "global_step": 0,
            "pytorch-lightning_version": _TAO_LIGHTNING,
            **TAO_MODEL,
        },
        target,
    )
    notes = _position_notes(model["pe_order"], dataset["augmentation"], target)
    notes.append(f"{target} has no class names; TAO takes them from its classmap")
    if missing:
        notes.append(
            f"{target} lacks {missing}, which detections do not use; set it as train.pretrained_model_path there"
        )
    return notes


def _position_notes(order: str, augmentation: Mapping[str, Any], target: Path) -> list[str]:
    """A note about a position embedding by rows; both programs order it by columns."""
    if order == "columns":
        return []
    height, width = augmentation["eval_spatial_size"]
    if height != width and not augmentation.get("preserve_aspect_ratio"):
        raise CheckpointError(
            f"{target} cannot be written: model.pe_order is rows and the input size is {height} x {width}, but the "
            "other program orders the position embedding by columns, so it would return other results. Convert it for "
            "a square input (dataset.augmentation.eval_spatial_size)"
        )
    return ["model.pe_order is rows, but columns in the other program, so results are only the same on square inputs"]


def _constants(model: Mapping[str, Any], size: list[int], levels: int) -> dict[str, Tensor]:
    """The buffers of version 2: the share of each sampling point, and the anchors at the input size."""
    points = model["num_points"] * (levels if len(model["num_points"]) == 1 else 1)
    shares = torch.tensor([1 / count for count in points for _ in range(count)])
    boxes, valid = square_anchors([(size[0] // stride, size[1] // stride) for stride in model["feat_strides"]])
    anchors = torch.where(valid, torch.log(boxes / (1 - boxes)), torch.inf)
    layers = range(model["dec_layers"])
    names = (f"decoder.decoder.layers.{layer}.cross_attn{POINT_SHARES}" for layer in layers)
    return {**{name: shares.clone() for name in names}, "decoder.anchors": anchors, "decoder.valid_mask": valid}


def _refuse(problems: Iterator[str], layout: str, target: Path) -> None:
    if reasons := list(problems):
        raise CheckpointError(
            f"{target} cannot be written for {layout}: {'; '.join(reasons)}. Write it as a file of this tool (--to "
            "rtdetr)"
        )


def _official_problems(model: Mapping[str, Any]) -> Iterator[str]:
    if not re.fullmatch(r"resnet_\d+d?", model["backbone"]):
        yield f"model.backbone is {model['backbone']}, but the official code has ResNets"
    if model["frozen_fm"]["enabled"]:
        yield "model.frozen_fm is enabled, but the official code has no foundation model"


def _tao_problems(model: Mapping[str, Any]) -> Iterator[str]:
    row = BACKBONES.get(model["backbone"])
    if row is None or row.origin == "ours":
        yield f"model.backbone is {model['backbone']}, which TAO does not have"
    fixed = {**_TAO_DECODER, "dec_dim_feedforward": 1024, "dec_hidden_dim": model["hidden_dim"]}
    given = {**model, "dec_dim_feedforward": model["dec_dim_feedforward"] or model["dim_feedforward"]}
    given["dec_hidden_dim"] = model["dec_hidden_dim"] or model["hidden_dim"]
    for name, value in fixed.items():
        if given[name] != value:
            yield f"model.{name} is {given[name]}, but {value} in TAO's decoder"
