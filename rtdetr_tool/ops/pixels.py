"""Pixel values as networks want them: RGB 0..1, or normalised by the statistics of ImageNet."""

from __future__ import annotations

from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB 0..1


def normalised(images: Tensor) -> Tensor:
    """images [B, 3, H, W] RGB 0..1 -> with ImageNet's mean taken away and divided by its standard deviation."""
    return (images - _per_channel(images, IMAGENET_MEAN)) / _per_channel(images, IMAGENET_STD)


def denormalised(images: Tensor) -> Tensor:
    """The reverse of `normalised`."""
    return images * _per_channel(images, IMAGENET_STD) + _per_channel(images, IMAGENET_MEAN)


def _per_channel(images: Tensor, values: tuple[float, float, float]) -> Tensor:
    return images.new_tensor(values).view(1, 3, 1, 1)
