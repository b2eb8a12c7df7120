"""A ViT with windowed attention as in RF-DETR, for pretrained weights of DINOv2 and DINOv3.

The grid of patches is split into n x n windows of equal size; each window has its own copy of the class token (and of
the registers). Most blocks attend within the windows, some over the whole image. Submodules have names similar to
DINOv2's; `checkpoints/dinov2.py` and `checkpoints/dinov3.py` have the tables.

The public weights were trained with a quirk that decides which blocks have global attention: an output index counts
blocks from 1 (the tokens after that many blocks), but the same index counted from 0 is the global block. With the
output indices 3, 6, 9, 12 of twelve blocks, the blocks 3, 6 and 9 are global, which run directly after the output
blocks, and block 12 does not exist.

Shape legend: B batch, H, W image size, p patch size, h, w = H/p, W/p, n windows per side, R registers, D width,
L = 1 + R + (h/n)(w/n) tokens of a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from timm.layers import resample_patch_embed
from torch import Tensor, nn

from rtdetr_tool.errors import UserError, nearest_multiples
from rtdetr_tool.models.backbones.normalization import ImageNormalization
from rtdetr_tool.models.backbones.recompute import run_with_recompute
from rtdetr_tool.models.backbones.single_stride import SingleStrideBackbone
from rtdetr_tool.models.backbones.vit_block import Block, BlockOptions, Rotation
from rtdetr_tool.ops.layers import modules_of_type, zero_bias


class WindowedVit(SingleStrideBackbone):
    """images [B, num_channels, H, W] 0..1 -> one map [B, D, h, w] per output index.

    Subclasses define how the positions of patches enter, add their parameters, and call `reset_parameters`.

    Args:
        out_indices: numbers of blocks after which the tokens are returned as a map, ascending; 0 = embedded patches.
        num_windows: windows per side (n); 1 = global attention in every block.
        drop_path: drop path rate of the last block, increasing linearly from 0 in the first one.
        activation_checkpoint: recompute the blocks in the backward pass to save memory.
        num_channels: of images; with other numbers than 3, ImageNet's statistics of RGB are repeated, as in RF-DETR.
    """

    registers: nn.Parameter | None
    normalization: ImageNormalization | None  # None once it is part of the patch embedding

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        options: BlockOptions,
        out_indices: Sequence[int] = (3, 6, 9, 12),
        patch_size: int = 16,
        num_windows: int = 2,
        num_registers: int = 0,
        drop_path: float = 0.0,
        activation_checkpoint: bool = False,
        num_channels: int = 3,
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.out_indices, self.num_windows, self.num_registers = tuple(out_indices), num_windows, num_registers
        self.patch_size, self.activation_checkpoint = patch_size, activation_checkpoint
        self._whole = (num_windows, patch_size)
        if (
            not self.out_indices
            or list(self.out_indices) != sorted({*self.out_indices})
            or not 0 <= self.out_indices[0] <= self.out_indices[-1] <= depth
        ):
            raise UserError(f"out_feature_indexes: {list(out_indices)} is invalid; expected 0 to {depth}, ascending")
        self.channels, self.strides = (width,) * len(self.out_indices), (patch_size,) * len(self.out_indices)
        self.patch_embed = nn.Conv2d(num_channels, width, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.registers = nn.Parameter(torch.zeros(1, num_registers, width)) if num_registers else None
        rates = [drop_path * index / max(depth - 1, 1) for index in range(depth)]
        self.blocks = nn.ModuleList(
            Block(width, num_heads, rate, num_windows if self._is_global(index) else 1, options)
            for index, rate in enumerate(rates)
        )
        self.norm = nn.LayerNorm(width, eps=options.eps)
        self.normalization = ImageNormalization(num_channels)
        self.blocks[self.out_indices[-1] :].requires_grad_(False)  # nothing reads what they compute

    def reset_parameters(self) -> None:
        """Truncated normal with std 0.02; biases and registers start at 0."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                zero_bias(module)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def _is_global(self, block: int) -> bool:
        """Whether the block attends over the whole image."""
        return block in self.out_indices or block > self.out_indices[-1]

    def run_as(self, num_windows: int | None = None, patch_size: int | None = None) -> None:
        """Run with other windows and patches from now on (None = those of the weights), for which each pass resizes the
        patch and position embeddings, as FlexiViT is trained (Beyer et al. 2022, arXiv:2212.08013)."""
        self.num_windows, self.patch_size = num_windows or self._whole[0], patch_size or self._whole[1]
        for index, block in enumerate(modules_of_type(self.blocks, Block)):
            block.merge = self.num_windows if self._is_global(index) else 1

    @property
    def size_multiple(self) -> int:
        return self.patch_size * self.num_windows

    def forward(self, images: Tensor) -> list[Tensor]:
        check_size(int(images.shape[-2]), int(images.shape[-1]), self.size_multiple)
        height, width = int(images.shape[-2]) // self.patch_size, int(images.shape[-1]) // self.patch_size
        tokens = self._embed(images, height, width)  # [B * n * n, L, D]
        rotations = self._rotations(height, width)
        maps = [tokens] if self.out_indices[0] == 0 else []
        recompute = self.activation_checkpoint and self.training
        for number, block in enumerate(self.blocks[: self.out_indices[-1]], 1):
            rotation = None if rotations is None else rotations[number - 1]
            tokens = run_with_recompute(block, tokens, rotation, recompute=recompute)
            if number in self.out_indices:
                maps.append(tokens)
        return [self._to_map(self.norm(tokens), images.shape[0], height, width) for tokens in maps]

    def _embed(self, images: Tensor, height: int, width: int) -> Tensor:
        if self.normalization is not None:
            images = self.normalization(images)
        patches = self._embed_patches(images).flatten(2).transpose(1, 2)  # [B, h * w, D]
        patches, token = self._with_positions(patches, height, width)
        windows = split_windows(patches, height, width, self.num_windows)
        extra = [token] if self.registers is None else [token, self.registers]
        leading = torch.cat(extra, dim=1).to(windows.dtype).expand(windows.shape[0], -1, -1)
        return torch.cat([leading, windows], dim=1)

    def _with_positions(self, patches: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Patches [B, h * w, D] and the class token [1, 1, D] with what is added for their positions."""
        return patches, self.cls_token

    def _rotations(self, height: int, width: int) -> list[Rotation] | None:
        """How each block rotates its queries and keys; None for a ViT that adds its positions to the patches."""
        return None

    def _embed_patches(self, images: Tensor) -> Tensor:
        if self.patch_size == self.patch_embed.weight.shape[-1]:
            embedded: Tensor = self.patch_embed(images)
            return embedded
        weight = resize_patches(self.patch_embed.weight, self.patch_size)
        return F.conv2d(images, weight, self.patch_embed.bias, stride=self.patch_size)

    def _to_map(self, tokens: Tensor, batch: int, height: int, width: int) -> Tensor:
        patches = join_windows(tokens[:, 1 + self.num_registers :], height, width, self.num_windows)
        return patches.reshape(batch, height, width, -1).permute(0, 3, 1, 2)

    def layer_numbers(self) -> dict[str, int]:
        """The layer of each parameter: 0 for embeddings, then one per block, and for the norm two more than the last
        output block, as in RF-DETR."""
        numbers = {name: self.out_indices[-1] + 2 for name, _ in self.norm.named_parameters("norm")}
        for index, block in enumerate(self.blocks):
            numbers |= {name: index + 1 for name, _ in block.named_parameters(f"blocks.{index}")}
        return {name: numbers.get(name, 0) for name, _ in self.named_parameters()}

    def embedding_names(self) -> frozenset[str]:
        return frozenset(name for name, number in self.layer_numbers().items() if number == 0)

    def resize_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights with patch embeddings resized to those of this model; DINOv2's patches have 14 pixels."""
        weights = dict(weights)
        embed = weights.get("patch_embed.weight")
        if embed is not None and embed.shape[-1] != self.patch_size:
            weights["patch_embed.weight"] = resize_patches(embed, self.patch_size)
        return weights

    @torch.no_grad()
    def fold_for_inference(self) -> None:
        """Fold normalization and layer scales, join the projections of query, key and value, and remove unused blocks,
        in place. The outputs are the same up to rounding; the module cannot be trained afterwards."""
        if self.normalization is not None:
            self.normalization.fold_into(self.patch_embed)
        self.normalization = None
        del self.blocks[self.out_indices[-1] :]
        for block in self.blocks:
            if isinstance(block, Block):
                block.fold_for_inference()


def split_windows(patches: Tensor, height: int, width: int, windows: int) -> Tensor:
    """Rows of patches [B, h * w, D] -> windows in reading order, [B * n * n, (h / n) * (w / n), D]."""
    if windows == 1:
        return patches
    rows, columns = height // windows, width // windows
    cut = patches.reshape(-1, rows, windows, columns, patches.shape[-1])  # [B * n, h / n, n, w / n, D]
    return cut.transpose(1, 2).reshape(-1, rows * columns, patches.shape[-1])


def join_windows(tokens: Tensor, height: int, width: int, windows: int) -> Tensor:
    """The reverse of `split_windows`."""
    if windows == 1:
        return tokens
    rows, columns = height // windows, width // windows
    cut = tokens.reshape(-1, windows, rows, columns, tokens.shape[-1])  # [B * n, n, h / n, w / n, D]
    return cut.transpose(1, 2).reshape(-1, height * width, tokens.shape[-1])


def resize_patches(weight: Tensor, size: int) -> Tensor:
    """Resample a patch embedding [D, 3, p, p] to patches of another size, so that a resized patch keeps its embedding
    (FlexiViT)."""
    matrix = _patch_matrix(int(weight.shape[-1]), size).to(weight.device)  # [p * p, size * size]
    with torch.autocast(weight.device.type, enabled=False):
        resized: Tensor = (weight.float().flatten(2) @ matrix).unflatten(-1, (size, size))
    return resized.to(weight.dtype)


@cache
def _patch_matrix(before: int, after: int) -> Tensor:
    """What resampling does to each pixel of a patch embedding, on the CPU."""
    with torch.inference_mode(False), torch.no_grad():
        pixels = torch.eye(before * before).view(-1, 1, before, before)
        resized: Tensor = resample_patch_embed(pixels, [after, after])
    return resized.flatten(1)


def check_size(height: int, width: int, multiple: int) -> None:
    """UserError with the nearest valid sizes unless both are multiples."""
    if height % multiple or width % multiple:
        raise UserError(
            f"An image of {height} x {width} (height x width) is invalid for this RF-DETR; expected multiples of "
            f"{multiple} (patch size times windows), nearest: {nearest_multiples(height, multiple)} x "
            f"{nearest_multiples(width, multiple)}"
        )
