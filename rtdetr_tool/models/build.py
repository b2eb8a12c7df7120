"""Build a detector from the `model` section of a spec; the only module of `models` that uses specs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from rtdetr_tool.catalog import BACKBONES, TIMM
from rtdetr_tool.errors import UserError
from rtdetr_tool.models.backbones.base import ImageBackbone
from rtdetr_tool.models.decoder_layer import DeformableAttention
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.spec import ModelSpec

WITHOUT_DROP_PATH = ("efficientvit",)


class BuildModule(Protocol):
    """The part of `families/<name>/build.py` that builds networks."""

    def build_detector(self, spec: ModelSpec, num_classes: int, activation_checkpoint: bool) -> Detector:
        """A detector with random weights, in training mode."""


class BackboneFields(Protocol):
    """The fields of a family that describe its backbone."""

    @property
    def backbone(self) -> str: ...

    @property
    def return_interm_indices(self) -> Sequence[int]: ...

    @property
    def feat_strides(self) -> Sequence[int]: ...

    @property
    def drop_path(self) -> float | None: ...


def build_backbone(spec: BackboneFields, activation_checkpoint: bool = False, num_channels: int = 3) -> ImageBackbone:
    """The backbone of `spec` with random weights, for images with this number of channels."""
    # These import timm, which takes a second; graphs and engines need no backbone.
    from rtdetr_tool.models.backbones.fan import FanBackbone
    from rtdetr_tool.models.backbones.timm_any import any_timm_backbone
    from rtdetr_tool.models.backbones.timm_families import TIMM_FAMILIES

    indices = spec.return_interm_indices
    drop_path = {} if spec.drop_path is None else {"drop_path_rate": spec.drop_path}
    if spec.backbone.startswith(TIMM):
        name = spec.backbone.removeprefix(TIMM)
        backbone = any_timm_backbone(name, indices, activation_checkpoint, num_channels, **drop_path)
    else:
        row = BACKBONES.get(spec.backbone)
        if row is None:
            raise UserError(f"model.backbone: {spec.backbone!r} is invalid; expected one of {', '.join(BACKBONES)}")
        if row.timm_name is None:
            fan_options = {} if spec.drop_path is None else {"drop_path": spec.drop_path}
            backbone = FanBackbone(
                indices, activation_checkpoint, num_channels=num_channels, **{**row.options, **fan_options}
            )
        elif drop_path and row.family in WITHOUT_DROP_PATH:
            raise UserError(f"model.drop_path is not supported with model.backbone={spec.backbone}; remove it")
        else:
            build = TIMM_FAMILIES[row.family]
            backbone = build(row.timm_name, indices, activation_checkpoint, num_channels, **row.options, **drop_path)
    if tuple(spec.feat_strides) != backbone.strides:
        raise UserError(
            f"model.feat_strides: {list(spec.feat_strides)} is invalid; expected {list(backbone.strides)}, the strides "
            f"of {spec.backbone} with return_interm_indices {list(indices)}"
        )
    return backbone


def build_detector(spec: ModelSpec, num_classes: int, activation_checkpoint: bool = False) -> Detector:
    """A detector with random weights, in training mode, of the family `spec.arch`.

    A frozen foundation model is loaded from the file in the spec.
    """
    build = cast(BuildModule, spec.family.module("build"))
    detector = build.build_detector(spec, num_classes, activation_checkpoint)
    for module in detector.modules():
        if isinstance(module, DeformableAttention):
            module.precise = spec.precise_msda
    if not spec.train_backbone:
        detector.freeze_published()
    return detector
