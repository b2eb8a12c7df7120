"""Pixel values of network inputs: 0..1, or normalized with ImageNet statistics; and RGB for drawing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB 0..1


def normalize(images: Tensor) -> Tensor:
    """Subtract ImageNet's mean from images [B, C, H, W] 0..1 and divide by its standard deviation."""
    return (images - _per_channel(images, IMAGENET_MEAN)) / _per_channel(images, IMAGENET_STD)


def denormalize(images: Tensor) -> Tensor:
    """The inverse of `normalize`."""
    return images * _per_channel(images, IMAGENET_STD) + _per_channel(images, IMAGENET_MEAN)


def statistics(of_rgb: Sequence[float], channels: int) -> list[float]:
    """A mean or deviation of images with any number of channels: those of RGB in turn, as in RF-DETR's package."""
    return [of_rgb[index % len(of_rgb)] for index in range(channels)]


def as_rgb(image: Tensor) -> Tensor:
    """An image [C, H, W] as [3, H, W] for drawing: its first three channels, or the first one as gray."""
    return image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)


def _per_channel(images: Tensor, of_rgb: tuple[float, float, float]) -> Tensor:
    values = statistics(of_rgb, int(images.shape[1]))
    constants = torch.tensor(values, dtype=images.dtype).to(images.device, non_blocking=True)  # no wait for a GPU
    return constants.view(1, -1, 1, 1)
