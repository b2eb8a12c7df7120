"""Pixel values of network inputs: RGB 0..1, or normalized with ImageNet statistics."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB 0..1


def normalize(images: Tensor) -> Tensor:
    """Subtract ImageNet's mean from images [B, 3, H, W] RGB 0..1 and divide by its standard deviation."""
    return (images - _per_channel(images, IMAGENET_MEAN)) / _per_channel(images, IMAGENET_STD)


def denormalize(images: Tensor) -> Tensor:
    """The inverse of `normalize`."""
    return images * _per_channel(images, IMAGENET_STD) + _per_channel(images, IMAGENET_MEAN)


def _per_channel(images: Tensor, values: tuple[float, float, float]) -> Tensor:
    constants = torch.tensor(values, dtype=images.dtype).to(images.device, non_blocking=True)  # no wait for a GPU
    return constants.view(1, 3, 1, 1)
