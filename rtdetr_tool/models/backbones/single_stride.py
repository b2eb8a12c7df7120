"""Backbones whose maps all have one size, as RF-DETR's projector reads them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from rtdetr_tool.catalog import STRIDES
from rtdetr_tool.models.backbones.base import ImageBackbone
from rtdetr_tool.models.backbones.dinov3 import Dinov3ConvNext


class SingleStrideBackbone(ImageBackbone):
    """images [B, num_channels, H, W] 0..1 -> maps [B, C, H / stride, W / stride], one for each of `channels`."""

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """Height and width of an image must be multiples of this."""

    def run_as(self, num_windows: int | None = None, patch_size: int | None = None) -> None:
        """Run with other windows and patches from now on; None = those of the weights.

        Only for backbones that have windows and patches; specs are checked for it.
        """
        assert num_windows is None and patch_size is None

    def resize_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of another size resized to those of this model."""
        return dict(weights)

    @abstractmethod
    def fold_for_inference(self) -> None:
        """Fold what can be folded, in place. The outputs are the same up to rounding; the module cannot be trained
        afterwards."""


class SingleStrideConvNext(Dinov3ConvNext, SingleStrideBackbone):
    """The maps of a ConvNeXt's stages, resized to stride 16: finer ones by the mean, coarser ones by repetition.

    Args:
        name: a ConvNeXt of timm.
        stages: numbers of the stages (1 to 4, of strides 4 to 32) that give a map, ascending.
        options: more arguments of the timm network.
    """

    def __init__(
        self,
        name: str,
        stages: Sequence[int] = (2, 3, 4),
        activation_checkpoint: bool = False,
        num_channels: int = 3,
        **options: Any,
    ) -> None:
        super().__init__(name, [stage - 1 for stage in stages], activation_checkpoint, num_channels, **options)
        self.strides = (_STRIDE,) * len(self.channels)

    @property
    def size_multiple(self) -> int:
        return STRIDES[-1]

    def forward(self, images: Tensor) -> list[Tensor]:
        return [
            _resized(stage, stride) for stage, stride in zip(super().forward(images), self.network.strides, strict=True)
        ]

    def fold_for_inference(self) -> None:
        self.fold_batch_norms()


_STRIDE = 16


def _resized(x: Tensor, stride: int) -> Tensor:
    if stride < _STRIDE:
        return F.avg_pool2d(x, _STRIDE // stride)
    return F.interpolate(x, scale_factor=stride // _STRIDE, mode="nearest") if stride > _STRIDE else x
