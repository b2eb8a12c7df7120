"""The channels of images in the first convolution of weights, and adapting those of RGB to other numbers.

RF-DETR's package adapts weights in the same way, so that both start from equal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

RGB = 3
# Names of the first convolution of our backbones, below `backbone.`.
_FIRST = (
    "patch_embed.weight", "patch_embed.backbone.stem.0.weight", "conv1.weight", "conv1.0.weight", "stem.0.weight",
    "stem.in_conv.conv.weight", "stem.stem1.conv.weight", "network.patch_embed.proj.weight", "network.stem.0.weight",
)  # fmt: skip


def input_weight(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the first convolution's weight in a detector's tensors with our names; None in other networks."""
    names = (f"backbone.{name}" for name in _FIRST)
    return next((name for name in names if name in weights and weights[name].ndim == 4), None)


def image_channels(weights: Mapping[str, Tensor]) -> int | None:
    """The number of image channels of a detector's tensors with our names; None if they do not show it."""
    name = input_weight(weights)
    return None if name is None else weights[name].shape[1]


def differs_in_channels(in_file: Sequence[int], in_module: Sequence[int]) -> bool:
    """Whether these are the shapes of a convolution for different numbers of input channels."""
    axes = zip(in_file, in_module, strict=False)
    return len(in_file) == len(in_module) == 4 and [a != b for a, b in axes] == [False, True, False, False]


def adapted_from_rgb(weight: Tensor, channels: int) -> Tensor:
    """A convolution's weight [D, 3, h, w] for images with another number of channels.

    For one channel, the mean of the three. For others the three in turn, scaled such that the sum over all channels
    keeps its magnitude.
    """
    if channels == RGB:
        return weight
    if channels == 1:
        return weight.mean(dim=1, keepdim=True)
    return weight.repeat(1, math.ceil(channels / RGB), 1, 1)[:, :channels] * (RGB / channels)


def adapt_inputs(weights: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights with RGB convolutions adapted to the channels that they have in `target`, and the adapted names."""
    adapted = {
        name: adapted_from_rgb(tensor, target[name].shape[1])
        for name, tensor in weights.items()
        if name in target and tensor.ndim == 4 and tensor.shape[1] == RGB
        and differs_in_channels(tensor.shape, target[name].shape)
    }  # fmt: skip
    return {**weights, **adapted}, list(adapted)
