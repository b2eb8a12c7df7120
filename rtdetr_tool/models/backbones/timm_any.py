"""Any network of timm by name, with feature maps of strides 4, 8, 16 and 32."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.layers import Format
from timm.models._features import FeatureListNet
from torch import Tensor, nn

from rtdetr_tool.catalog import STRIDES
from rtdetr_tool.errors import UserError
from rtdetr_tool.messages import first_line
from rtdetr_tool.models.backbones.base import ImageBackbone
from rtdetr_tool.models.backbones.timm_staged import StagedBackbone

logger = logging.getLogger(__name__)

_PROBE = (64, 96)  # height and width of the image with which every network is checked, multiples of 32
_ANY_SIZE: tuple[dict[str, Any], ...] = ({}, {"strict_img_size": False})  # options that allow any input size


class WholeBackbone(ImageBackbone):
    """A timm network that cannot be split into parts, in timm's own feature extractor.

    Norms are not folded, and activations are only recomputed in networks without batch norms, for which timm's method
    keeps the result the same. `channels_are_last` is set if the network's maps are [B, H, W, C].
    """

    channels_are_last = False

    def __init__(
        self, extractor: nn.Module, indices: Sequence[int], activation_checkpoint: bool, num_channels: int = 3
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.extractor = extractor
        inner = (name for name in ("model", "body") if isinstance(getattr(extractor, name, None), nn.Module))
        self.published_name = ".".join(("extractor", *inner))
        feature_info: Any = extractor.feature_info  # timm's attributes are not declared
        self.channels = tuple(feature_info.channels())
        self.strides = tuple(STRIDES[index] for index in indices)
        if activation_checkpoint and not _recompute(self.published):
            logger.info("train.activation_checkpoint has no effect on %s.", type(self.published).__name__)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.extractor(images)
        return [x.permute(0, 3, 1, 2) for x in maps] if self.channels_are_last else maps

    def fold_batch_norms(self) -> None:
        """Do nothing, because the order of norms and convolutions in the network is unknown."""


def any_timm_backbone(
    name: str,
    indices: Sequence[int],
    activation_checkpoint: bool = False,
    num_channels: int = 3,
    **arguments: Any,
) -> ImageBackbone:
    """The network `name` (with or without a tag) as a backbone with the maps in `indices` (strides 4 to 32).

    `arguments` are passed to timm; a network that does not accept them cannot be a backbone.

    Raises:
        UserError: the network does not exist, has no map of a requested stride, or does not support all input sizes
            that are multiples of 32.
    """
    known = timm.list_models()
    if name.split(".")[0] not in known:
        near = difflib.get_close_matches(name.split(".")[0], known, n=3, cutoff=0.5)
        raise UserError(
            f"model.backbone: timm {timm.__version__} has no network '{name}'"
            + (f"; did you mean {' or '.join(f'timm/{other}' for other in near)}?" if near else "")
        )
    problem = ""
    for options in _ANY_SIZE:
        try:
            backbone = _build(name, indices, activation_checkpoint, num_channels, {**options, **arguments})
        except (TypeError, RuntimeError, AssertionError, AttributeError, KeyError, LookupError) as error:
            problem = problem or f"timm cannot extract feature maps from it ({first_line(error)})"
            continue
        mismatch = _problem_with(backbone)
        if mismatch is None:
            return backbone
        problem = problem or mismatch
    raise UserError(f"model.backbone: timm/{name} is not supported as a backbone: {problem}")


def _build(
    name: str, indices: Sequence[int], activation_checkpoint: bool, num_channels: int, options: dict[str, Any]
) -> StagedBackbone | WholeBackbone:
    network: Any = timm.create_model(name, num_classes=0, **options)
    entries = list(network.feature_info)
    positions = []
    for index in indices:
        fitting = [number for number, entry in enumerate(entries) if entry["reduction"] == STRIDES[index]]
        if not fitting:
            strides = ", ".join(str(stride) for stride in dict.fromkeys(entry["reduction"] for entry in entries))
            raise UserError(
                f"model.backbone: timm/{name} has no map of stride {STRIDES[index]} "
                f"(model.return_interm_indices {index}); expected one of its strides {strides}"
            )
        positions.append(fitting[-1])
    if num_channels != 3:  # not every network has the argument
        options = {**options, "in_chans": num_channels}
    extractor = timm.create_model(name, features_only=True, out_indices=positions, **options)
    backbone: StagedBackbone | WholeBackbone
    if isinstance(extractor, FeatureListNet):
        backbone = StagedBackbone(name, indices, activation_checkpoint, num_channels, **options)
    else:
        backbone = WholeBackbone(extractor, indices, activation_checkpoint, num_channels)
    backbone.channels_are_last = getattr(extractor, "output_fmt", None) == Format.NHWC
    return backbone


@torch.no_grad()
def _problem_with(backbone: ImageBackbone) -> str | None:
    """The problem, if any, with an image that is not square and has another size than the network's default."""
    height, width = _PROBE
    expected = [(c, height // s, width // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)]
    training = backbone.training
    try:
        maps = backbone.eval()(
            torch.zeros(1, backbone.num_channels, height, width, device=next(backbone.parameters()).device)
        )
    except (RuntimeError, AssertionError, ValueError) as error:
        return f"it does not support all input sizes that are multiples of 32 ({first_line(error)})"
    finally:
        backbone.train(training)
    shapes = [tuple(m.shape[1:]) for m in maps]
    return None if shapes == expected else f"its feature maps have shapes {shapes}; expected {expected}"


def _recompute(network: Any) -> bool:
    """Enable timm's activation checkpointing if supported and if there are no batch norms; True if enabled."""
    if any(isinstance(child, nn.modules.batchnorm._BatchNorm) for child in network.modules()):
        return False
    try:
        network.set_grad_checkpointing(True)
    except (AttributeError, AssertionError):  # raised by timm's networks without support
        return False
    return True
