"""FAN, the fully attentional network (Zhou et al. 2022, "Understanding The Robustness in Vision Transformers",
arXiv:2204.12451) in its hybrid form, with the feature maps that TAO's RT-DETR uses.

Two ConvNeXt stages (strides 4 and 8) embed the patches of stride 16; FAN blocks apply attention over tokens and then
over channels. Names are those of the original and of TAO. No feature map depends on the class token, so the token, its
attention and its MLP are omitted; the norms that it shares with the other tokens are kept.

Shape legend: B batch, H, W image size, h, w = H/16, W/16, N = h*w tokens, C width, G heads, D = C/G.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models.convnext import ConvNeXtStage
from torch import Tensor, nn

from rtdetr_tool.models.backbones.base import ImageBackbone
from rtdetr_tool.models.backbones.fan_blocks import ClassBlockOnTokens, DepthwisePair, FanBlock, tokens_to_map
from rtdetr_tool.models.backbones.recompute import run_with_recompute
from rtdetr_tool.ops.layers import zero_bias

_STEM_WIDTHS = (128, 256)
_LAST_WIDTH = 768  # of the map at stride 32, for all sizes of the network
_POSITION_WIDTH = 32  # sines and cosines for each of y and x
_CLASS_BLOCKS = 2


class FanBackbone(ImageBackbone):
    """Feature maps of FAN-Hybrid at the stages in `indices` (0..3 = strides 4, 8, 16, 32).

    Args:
        indices: stages to return, ascending.
        activation_checkpoint: recompute the stages and blocks in the backward pass to save memory.
        width: channels of the tokens.
        heads: attention heads.
        depth: FAN blocks.
        stem_depths: ConvNeXt blocks of the two stages before the FAN blocks.
        map_block: the block whose output is the map at stride 16; None = the last.
        drop_path: share of images for which a block is skipped in training; the default is TAO's.
        num_channels: of images.
    """

    def __init__(
        self,
        indices: Sequence[int],
        activation_checkpoint: bool = False,
        *,
        width: int,
        heads: int,
        depth: int,
        stem_depths: Sequence[int] = (3, 3),
        map_block: int | None = None,
        drop_path: float = 0.3,
        num_channels: int = 3,
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.indices = tuple(indices)
        self.activation_checkpoint = activation_checkpoint
        widths = (*_STEM_WIDTHS, width, _LAST_WIDTH)
        self.channels = tuple(widths[index] for index in self.indices)
        self.strides = tuple((4, 8, 16, 32)[index] for index in self.indices)
        self.map_block = depth - 1 if map_block is None else map_block
        last = max(self.indices)
        self.patch_embed = HybridEmbed(width if last >= 2 else None, stem_depths[: last + 1], num_channels)
        if last >= 2:
            self.pos_embed = FourierPosition(width)
            blocks = depth if last == 3 else self.map_block + 1
            self.blocks = nn.ModuleList(FanBlock(width, heads, drop_path) for _ in range(blocks))
        if last == 3:
            self.cls_attn_blocks = nn.ModuleList(ClassBlockOnTokens(width) for _ in range(_CLASS_BLOCKS))
            self.learnable_downsample = nn.Conv2d(width, _LAST_WIDTH, 3, stride=2, padding=1)
        for index in self.indices:
            self.add_module(f"out_norm{index}", LayerNorm2d(widths[index], eps=1e-5))
        self.apply(_initialize)

    def forward(self, images: Tensor) -> list[Tensor]:
        recompute = self.activation_checkpoint and self.training
        maps = self.patch_embed.stages(images, recompute)
        if max(self.indices) >= 2:
            maps += self._token_maps(self.patch_embed.proj(maps[-1]), recompute)
        return [getattr(self, f"out_norm{index}")(maps[index]) for index in self.indices]

    def _token_maps(self, x: Tensor, recompute: bool) -> list[Tensor]:
        """The map at stride 16 and, if selected, the one at stride 32, from patches [B, C, h, w]."""
        height, width = x.shape[-2:]
        x = (x + self.pos_embed(height, width)).flatten(2).transpose(1, 2)  # [B, N, C]
        maps = []
        for index, block in enumerate(self.blocks):
            x = run_with_recompute(block, x, height, width, recompute=recompute)
            if index == self.map_block:
                maps.append(tokens_to_map(x, height, width))
        if max(self.indices) == 3:
            for block in self.cls_attn_blocks:
                x = block(x)
            maps.append(self.learnable_downsample(tokens_to_map(x, height, width)))
        return maps

    def fold_batch_norms(self) -> None:
        """Do nothing: the batch norms precede padded convolutions and cannot be folded into them."""


class HybridEmbed(nn.Module):
    """ConvNeXt stages of strides 4 and 8 and, with a token width, the projection of 2 x 2 patches of the second."""

    def __init__(self, width: int | None, depths: Sequence[int], num_channels: int) -> None:
        super().__init__()
        self.backbone = ConvNextStages(depths, num_channels)
        if width is not None:
            self.proj = nn.Conv2d(_STEM_WIDTHS[len(self.backbone.stages) - 1], width, 2, stride=2)

    def stages(self, images: Tensor, recompute: bool) -> list[Tensor]:
        """[B, 128, H/4, W/4] and, if built, [B, 256, H/8, W/8]."""
        x, maps = self.backbone.stem(images), []
        for stage in self.backbone.stages:
            x = run_with_recompute(stage, x, recompute=recompute)
            maps.append(x)
        return maps


class ConvNextStages(nn.Module):
    """Patches of 4 x 4 pixels and up to two ConvNeXt stages with `depths` blocks."""

    def __init__(self, depths: Sequence[int], num_channels: int) -> None:
        super().__init__()
        patches = nn.Conv2d(num_channels, _STEM_WIDTHS[0], 4, stride=4)
        self.stem = nn.Sequential(patches, LayerNorm2d(_STEM_WIDTHS[0], eps=1e-6))
        self.stages = nn.Sequential()
        previous = _STEM_WIDTHS[0]
        for index, (width, depth) in enumerate(zip(_STEM_WIDTHS, depths, strict=False)):
            stage = ConvNeXtStage(
                previous, width, stride=1 if index == 0 else 2, depth=depth, ls_init_value=1e-6, conv_mlp=True,
                norm_layer=SampleNorm2d, norm_layer_cl=SampleNorm2d,
            )  # fmt: skip
            self.stages.append(stage)
            previous = width


class SampleNorm2d(LayerNorm2d):
    """Layer norm over the channels of a map by the sample variance (C - 1), as in these stages of the original.

    The original does this for channels_last maps only, which all except the stem's are; the published weights were
    trained with it.
    """

    def forward(self, x: Tensor) -> Tensor:
        (width,) = self.normalized_shape
        share = (width - 1) / width
        x = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight * share**0.5, self.bias, self.eps * share
        )
        return x.permute(0, 3, 1, 2)


class FourierPosition(nn.Module):
    """Sines and cosines of the position, as a share of the map's height and width, projected to the token width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * _POSITION_WIDTH, width, 1)

    def forward(self, height: int, width: int) -> Tensor:
        """[1, C, h, w]"""
        weight = self.token_projection.weight
        y = self._waves(height, weight)[:, None].expand(-1, width, -1)
        x = self._waves(width, weight)[None].expand(height, -1, -1)
        embedding: Tensor = self.token_projection(torch.cat([y, x], dim=-1).permute(2, 0, 1)[None].to(weight.dtype))
        return embedding

    @staticmethod
    def _waves(count: int, like: Tensor) -> Tensor:
        """[count, 32]: for each of 16 frequencies sine and cosine."""
        position = torch.arange(1, count + 1, device=like.device, dtype=torch.float32) / (count + 1e-6) * (2 * math.pi)
        exponent = torch.arange(0, _POSITION_WIDTH, 2, device=like.device, dtype=torch.float32) / _POSITION_WIDTH
        angle = position[:, None] / 10000**exponent
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def _initialize(module: nn.Module) -> None:
    """As the original: truncated normal for linear layers and ConvNeXt, fan-out for depthwise convolutions."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        zero_bias(module)
    elif isinstance(module, DepthwisePair):
        for conv in (module.conv1, module.conv2):
            nn.init.normal_(conv.weight, std=math.sqrt(2 / (conv.kernel_size[0] * conv.kernel_size[1])))
            zero_bias(conv)
    elif isinstance(module, ConvNextStages):
        for child in module.modules():
            if isinstance(child, nn.Conv2d):
                nn.init.trunc_normal_(child.weight, std=0.02)
                zero_bias(child)
