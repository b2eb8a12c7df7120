"""The backbones of RF-DETR by what their tensors show, and pretrained weights for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from rtdetr_tool.catalog import CONVNEXT, DINOV2, DINOV3, ENCODERS, Encoder
from rtdetr_tool.checkpoints.backbone_names import native_backbone_names
from rtdetr_tool.checkpoints.detector_file import read_detector, weights_file
from rtdetr_tool.checkpoints.dinov2 import from_dinov2, split_projections
from rtdetr_tool.checkpoints.dinov3 import WINDOWED
from rtdetr_tool.checkpoints.identify import state_dict_of
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.checkpoints.published import log_inherited_license
from rtdetr_tool.checkpoints.renames import count, split_by_prefix, to_native
from rtdetr_tool.checkpoints.timm_weights import from_timm, is_timm, tagged
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rfdetr.names import has_rfdetr_names
from rtdetr_tool.messages import first_of


class Shape(NamedTuple):
    """What distinguishes encoders in their tensors."""

    kind: str
    width: int
    depth: int
    registers: int
    gated: bool

    def __str__(self) -> str:
        registers = f", {self.registers} registers" if self.registers else ""
        return f"{self.kind} of width {self.width} with {self.depth} blocks{registers}{', gated' if self.gated else ''}"


def shape_of(row: Encoder) -> Shape:
    return Shape(row.kind, row.width, row.depth, row.num_registers, row.gated)


def shape_of_tensors(weights: Mapping[str, Tensor]) -> Shape:
    """Of a backbone's tensors with our names.

    Raises:
        KeyError: a tensor that every encoder has is missing.
    """
    if "network.stem.0.weight" in weights:
        depth = count(weights, "network.stages.2.blocks.")
        return Shape(CONVNEXT, weights["network.stem.0.weight"].shape[0], depth, 0, False)
    registers = weights["registers"].shape[1] if "registers" in weights else 0
    width, depth = weights["patch_embed.weight"].shape[0], count(weights, "blocks.")
    return Shape(
        DINOV2 if "position" in weights else DINOV3, width, depth, registers, "blocks.0.gate.weight" in weights
    )


def encoder_of(weights: Mapping[str, Tensor]) -> Encoder:
    """The encoder that has tensors of these shapes.

    Raises:
        CheckpointError: there is none.
    """
    shape = shape_of_tensors(weights)
    row = next((row for row in ENCODERS.values() if shape_of(row) == shape), None)
    if row is None:
        raise CheckpointError(f"its backbone is a {shape}, which no model.rfdetr.encoder is")
    return row


def pretrained_weights(source: str, row: Encoder) -> dict[str, Tensor]:
    """The encoder's weights with our names, from a file or directory, or from timm (`timm`, `timm/<tag>`).

    The file may be DINOv2 or DINOv3 from transformers, timm or Meta, or a complete RF-DETR of any format.
    """
    log_inherited_license(row.name, row.license)
    if is_timm(source):
        tag = source.removeprefix("timm").removeprefix("/")
        name = tagged(row.timm_name.partition(".")[0], tag) if tag else row.timm_name
        return _converted(from_timm(name), row.kind)
    tensors = state_dict_of(load_checkpoint(weights_file(source)))
    if has_rfdetr_names(tensors) or any(name.endswith("decoder.refpoint_embed.weight") for name in tensors):
        return _backbone_of_detector(source, row)
    try:
        return _converted(tensors, row.kind)
    except CheckpointError as error:
        raise CheckpointError(
            f"model.pretrained_backbone_path: {source} is not a {row.kind} backbone, which model.rfdetr.encoder "
            f"{row.name} requires: {error}"
        ) from error


def _backbone_of_detector(source: str, row: Encoder) -> dict[str, Tensor]:
    weights = split_by_prefix(read_detector(source).weights, "backbone.")[0]
    if (shape := shape_of_tensors(weights)) != shape_of(row):
        raise CheckpointError(
            f"model.pretrained_backbone_path: the backbone of {source} is a {shape}, but model.rfdetr.encoder "
            f"{row.name} is a {shape_of(row)}"
        )
    return weights


def _converted(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Weights of transformers, timm or Meta under our names.

    Raises:
        CheckpointError: the tensors are those of another network.
    """
    if kind == DINOV2:
        return from_dinov2(tensors)
    network = native_backbone_names(
        {name.removeprefix("module.").removeprefix("model."): tensor for name, tensor in tensors.items()}
    )
    marker = "reg_token" if kind == DINOV3 else "stem.0.weight"
    if marker not in network or "pos_embed" in network:
        raise CheckpointError(
            f"found the tensors {first_of(tensors, 3)}; expected those of {kind} from transformers, timm or Meta"
        )
    if kind == CONVNEXT:
        return {f"network.{name}": tensor for name, tensor in network.items()}
    return to_native(split_projections(network), WINDOWED)
