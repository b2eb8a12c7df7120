"""RADIO's vision transformer (AM-RADIO, Ranzinger et al. 2024, arXiv:2312.06709) as in C-RADIOv2.

A plain ViT of timm's blocks without a final norm. It differs by one class token per teacher and register tokens before
the patches, and by a position embedding for large images, of which smaller images use a resized crop (CPE).
Parameters have the names of the published weights.

Shape legend: B batch, H, W size of the image, h, w of the patch grid, T class tokens, R registers, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from rtdetr_tool.errors import CheckpointError

_USED = ("patch_generator.", "blocks.")  # prefixes of our names; files also have teachers' heads and statistics


class RadioOutput(NamedTuple):
    summary: Tensor  # [B, S * D], the class tokens of S teachers, one after the other
    spatial: Tensor  # [B, D, h, w]


class RadioViT(nn.Module):
    """Normalized images, whose sides are multiples of the patch size, to tokens.

    Args:
        grid: side of the position embedding in patches, the size of the largest image trained on.
        num_class_tokens: T, one per teacher.
        num_tokens: T + R.
        summary_tokens: S, the number of class tokens, from the first one, that form the summary.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        patch_size: int = 16,
        grid: int = 128,
        num_tokens: int = 8,
        summary_tokens: int = 3,
    ) -> None:
        super().__init__()
        self.width, self.patch_size, self.summary_tokens = width, patch_size, summary_tokens
        self.patch_generator = PatchGenerator(width, patch_size, grid, num_tokens)
        norm: Any = partial(nn.LayerNorm, eps=1e-6)  # timm expects a class, but any function works
        self.blocks = nn.Sequential(*(Block(width, num_heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)))

    @property
    def summary_dim(self) -> int:
        return self.summary_tokens * self.width

    def forward(self, images: Tensor) -> RadioOutput:
        height, width = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
        tokens = self.blocks(self.patch_generator(images))  # [B, T + R + h * w, D]
        patches = tokens[:, self.patch_generator.num_tokens :]
        spatial = patches.transpose(1, 2).reshape(-1, self.width, height, width)
        return RadioOutput(tokens[:, : self.summary_tokens].flatten(1), spatial)


class PatchGenerator(nn.Module):
    """Images [B, 3, H, W] to tokens [B, T + R + h * w, D]: class and register tokens, then patches with positions."""

    def __init__(self, width: int, patch_size: int, grid: int, num_tokens: int) -> None:
        super().__init__()
        self.patch_size, self.grid, self.num_tokens = patch_size, grid, num_tokens
        self.embedder = nn.Linear(3 * patch_size**2, width, bias=False)
        self.pos_embed = nn.Parameter(torch.randn(1, grid**2, width) * width**-0.5)
        self.cls_token = nn.ParameterDict({"token": nn.Parameter(torch.randn(num_tokens, width) * width**-0.5)})

    def forward(self, images: Tensor) -> Tensor:
        side = self.patch_size
        kernel = self.embedder.weight.unflatten(1, (3, side, side))
        patches = F.conv2d(images, kernel, stride=side)  # [B, D, h, w]
        height, width = int(patches.shape[-2]), int(patches.shape[-1])
        patches = patches.flatten(2).transpose(1, 2) + self.positions(height, width)
        tokens = self.cls_token["token"].expand(len(images), -1, -1).to(patches.dtype)
        return torch.cat([tokens, patches], dim=1)

    def positions(self, height: int, width: int) -> Tensor:
        """[1, h * w, D]: the top left part of the table resized to a square of the longer side."""
        longer = max(height, width)
        table = self.pos_embed.transpose(1, 2).unflatten(2, (self.grid, self.grid)).float()
        table = F.interpolate(table, size=(longer, longer), mode="bilinear", align_corners=True)
        return table[..., :height, :width].flatten(2).transpose(1, 2).to(self.pos_embed.dtype)


def radio_weights(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """RADIO's tensors with our names, without prefixes of wrappers and without the teachers' heads.

    Raises:
        CheckpointError: the file is not a RADIO model, or one of another version.
    """
    marker = "patch_generator.pos_embed"
    prefixes = [name.removesuffix(marker) for name in state_dict if name.endswith(marker)]
    if not prefixes:
        raise CheckpointError(
            f"{source} is not a RADIO model: '{marker}' is not among its {len(state_dict)} tensors. Set "
            "model.frozen_fm.checkpoint to the published weights of C-RADIOv2."
        )
    prefix = min(prefixes, key=len)
    names = {name: name[len(prefix) :] for name in state_dict if name.startswith(prefix)}
    weights = {short: state_dict[name] for name, short in names.items() if short.startswith(_USED)}
    if any(".ls1." in name for name in weights):
        raise CheckpointError(f"{source} is RADIO version 3 or later (it has layer scales); expected version 2.")
    return weights
