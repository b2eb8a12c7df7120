"""RF-DETR's segmentation head: the mask of a query is the product of its embedding and a feature map of the image.

The idea is that of MaskDINO (Li et al. 2022, arXiv:2206.02777); the map is refined once per decoder layer by a residual
block like ConvNeXt's. Names of the children are those of the public weights.

Shape legend: B batch, Q queries, D width, L decoder layers, H, W input size, h, w size of the masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetr_tool.families.rfdetr.model.decoder import Decoded
from rtdetr_tool.ops.structures import MaskFactors

_EPS = 1e-6  # of the blocks' norms


class MaskHead(nn.Module):
    """The finest level [B, D, ., .] and the decoder's queries in, masks of (H / downsample, W / downsample) out.

    Args:
        num_layers: decoder layers. The masks of layer l use the map after l + 1 blocks, those of the first stage's
            proposals the map before all blocks.
    """

    def __init__(self, dim: int, num_layers: int, downsample: int = 4) -> None:
        super().__init__()
        self.downsample, self.depth = downsample, num_layers  # the latter: decoder layers that run
        self.blocks = nn.ModuleList(MapBlock(dim) for _ in range(num_layers))
        self.spatial_features_proj = nn.Conv2d(dim, dim, 1)
        self.query_features_block = QueryBlock(dim)
        self.query_features_proj = nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, level: Tensor, decoded: Decoded, size: tuple[int, int]) -> dict[str, Tensor | MaskFactors]:
        """The mask fields of `Predictions`; in training those of every layer and of the proposals.

        `size` is the input's (H, W).
        """
        target = (size[0] // self.downsample, size[1] // self.downsample)
        first = F.interpolate(level, size=target, mode="bilinear", align_corners=False)
        maps = [first]
        for block in self.blocks[: self.depth]:
            maps.append(block(maps[-1]))
        if self.training:
            layers, proposed = self._factors(maps[1:], decoded.hidden), self._factors([first], [decoded.proposed])
            return {"layer_masks": layers, "encoder_masks": proposed}
        features = self.spatial_features_proj(maps[-1])
        products = self._read(decoded.hidden[-1]) @ features.flatten(2)  # [B, Q, h * w]
        return {"masks": products.unflatten(-1, target) + self.bias}

    def _factors(self, maps: Sequence[Tensor], contents: Sequence[Tensor]) -> MaskFactors:
        features = torch.stack([self.spatial_features_proj(each) for each in maps])
        return MaskFactors(features, self._read(torch.stack(list(contents))), self.bias)

    def _read(self, content: Tensor) -> Tensor:
        vectors: Tensor = self.query_features_proj(self.query_features_block(content))
        return vectors


class MapBlock(nn.Module):
    """Residual block of a depthwise 3x3 convolution, norm, linear layer and GELU on [B, D, h, w]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.pwconv1 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + F.gelu(self.pwconv1(hidden)).permute(0, 3, 1, 2)


class QueryBlock(nn.Module):
    """Residual feed-forward network of four times the width on [..., Q, D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(dim)
        self.layers = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.layers(self.norm_in(x))
        return output
