"""Normalization of images inside a backbone whose weights were trained on normalized images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtdetr_tool.ops.pixels import IMAGENET_MEAN, IMAGENET_STD, statistics


class ImageNormalization(nn.Module):
    """images [B, C, H, W] 0..1 -> with ImageNet's mean and deviation; with other channels than RGB, those in turn."""

    mean: Tensor
    std: Tensor

    def __init__(self, num_channels: int = 3) -> None:
        super().__init__()
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            tensor = torch.tensor(statistics(values, num_channels))[:, None, None]
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    @torch.no_grad()
    def fold_into(self, conv: nn.Conv2d) -> None:
        """Make the normalization part of the convolution that reads the images, which has a bias and no padding."""
        assert conv.bias is not None
        scaled = conv.weight / self.std
        conv.bias.sub_((scaled * self.mean).sum((1, 2, 3)))
        conv.weight.copy_(scaled)
