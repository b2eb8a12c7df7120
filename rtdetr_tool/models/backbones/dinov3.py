"""DINOv3 (Siméoni et al. 2025, arXiv:2508.10104): ViTs and ConvNeXts of timm for images that are not normalized.

Positions in the ViT are rotations of queries and keys that depend on the size of the grid (RoPE), so any size works.

Shape legend: B batch, H, W image size, D width of the ViT, h, w = H/16, W/16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from rtdetr_tool.catalog import STRIDES
from rtdetr_tool.models.backbones.base import ImageBackbone
from rtdetr_tool.models.backbones.normalization import ImageNormalization
from rtdetr_tool.models.backbones.timm_network import TimmBackbone
from rtdetr_tool.models.backbones.timm_staged import StagedBackbone

OUTPUTS = 4  # maps of the ViT, after each quarter of its blocks
_NETWORK = "network"


class Dinov3ConvNext(ImageBackbone):
    """The stages of a ConvNeXt, without TAO's convolutions. Arguments as for `TimmBackbone`."""

    published_name = _NETWORK

    def __init__(
        self,
        name: str,
        indices: Sequence[int],
        activation_checkpoint: bool = False,
        num_channels: int = 3,
        **options: Any,
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.normalization: nn.Module = ImageNormalization(num_channels)
        self.network = StagedBackbone(name, indices, activation_checkpoint, num_channels, **options)
        self.channels, self.strides = self.network.channels, self.network.strides

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.network(self.normalization(images))
        return maps

    def fold_batch_norms(self) -> None:
        """Fold normalization into the stem; there are no batch norms."""
        self.normalization = _folded(self.normalization, self.network.get_submodule("stem.0"))


class Dinov3Vit(TimmBackbone):
    """Maps of a ViT as a pyramid, whose layers are trained with the detector even if the ViT is frozen.

    As in DINOv3's detectors, the maps after each quarter of the blocks are normalized and concatenated.
    """

    published_name = _NETWORK

    def adopt(self, network: Any) -> None:
        self.normalization: nn.Module = ImageNormalization(self.num_channels)
        self.network = network
        network.set_grad_checkpointing(self.activation_checkpoint)
        depth = len(network.blocks)
        self.outputs = [depth * quarter // OUTPUTS - 1 for quarter in range(1, OUTPUTS + 1)]
        self.pyramid = FeaturePyramid(OUTPUTS * network.embed_dim, network.embed_dim, self.indices)
        self.channels = self.pyramid.channels
        self.strides = tuple(STRIDES[index] for index in self.indices)

    def forward(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.pyramid(torch.cat(self.vit_maps(images), dim=1))
        return levels

    def vit_maps(self, images: Tensor) -> list[Tensor]:
        """images [B, C, H, W] 0..1 -> maps [B, D, h, w] of the blocks in `outputs`, after the ViT's last norm."""
        maps: list[Tensor] = self.network.forward_intermediates(
            self.normalization(images), indices=self.outputs, norm=True, intermediates_only=True
        )
        return maps

    def embedding_names(self) -> frozenset[str]:
        return frozenset(name for name, number in self.layer_numbers().items() if number == 0)

    def fold_batch_norms(self) -> None:
        """Fold normalization into the patch embedding; there are no batch norms."""
        self.normalization = _folded(self.normalization, self.network.patch_embed.proj)


class FeaturePyramid(nn.Module):
    """A map of stride 16 -> maps of strides 4, 8, 16 and 32 for the stages in `indices`, as in ViTDet's simple pyramid
    (Li et al. 2022, arXiv:2203.16527). A 1x1 convolution first reduces the channels to `width`."""

    def __init__(self, inputs: int, width: int, indices: Sequence[int]) -> None:
        super().__init__()
        self.fuse = nn.Sequential(nn.Conv2d(inputs, width, 1), LayerNorm2d(width))
        half, quarter = width // 2, width // 4
        self.channels = tuple((quarter, half, width, width)[index] for index in indices)
        layers: dict[int, list[nn.Module]] = {
            0: [_raise(width, half), LayerNorm2d(half), nn.GELU(), _raise(half, quarter)],
            1: [_raise(width, half)],
            2: [],
            3: [nn.MaxPool2d(2)],
        }
        self.levels = nn.ModuleList(nn.Sequential(*layers[index]) for index in indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        fused = self.fuse(x)
        return [level(fused) for level in self.levels]


def _raise(inputs: int, outputs: int) -> nn.Module:
    return nn.ConvTranspose2d(inputs, outputs, 2, stride=2)


def _folded(normalization: nn.Module, conv: nn.Module) -> nn.Module:
    """What remains of a normalization that is part of the first convolution from now on."""
    if isinstance(normalization, ImageNormalization) and isinstance(conv, nn.Conv2d):
        normalization.fold_into(conv)
    return nn.Identity()
