"""Backbones from timm networks that are a sequence of parts, with timm's parameter names.

ConvNeXt (Liu et al. 2022, arXiv:2201.03545) and V2 (Woo et al. 2023, arXiv:2301.00808), EfficientViT (Cai et al. 2023,
arXiv:2205.14756), EdgeNeXt (Maaz et al. 2022, arXiv:2206.10589), and other networks that timm splits this way.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from rtdetr_tool.catalog import STRIDES
from rtdetr_tool.models.backbones.base import ImageBackbone
from rtdetr_tool.models.backbones.recompute import run_with_recompute
from rtdetr_tool.models.backbones.timm_network import TimmBackbone
from rtdetr_tool.ops.layers import fold_batch_norms, zero_bias
from rtdetr_tool.ops.tf32 import exact_float32


class StagedBackbone(TimmBackbone):
    """Networks of timm that are a sequence of parts; see `TimmBackbone`. Parts with weights are recomputed one by one.

    The parts up to the last stage keep their names; the classifier and later parts are omitted. As in timm's feature
    extraction, parts run in the order in which the network registers them.

    `channels_are_last` is set for networks of timm whose maps are [B, H, W, C].
    """

    channels_are_last = False

    def adopt(self, network: Any) -> None:
        self.strides = tuple(STRIDES[index] for index in self.indices)
        entries = {entry["reduction"]: entry for entry in network.feature_info}  # the last one of each stride
        self.channels = tuple(entries[stride]["num_chs"] for stride in self.strides)
        self._outputs = [entries[stride]["module"] for stride in self.strides]
        self._parts = _parts_up_to(network, self._outputs)
        for child in dict.fromkeys(part.split(".")[0] for part in self._parts):
            self.add_module(child, getattr(network, child))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, x = [], images
        recompute = self.activation_checkpoint and self.training
        for part in self._parts:
            module = self.get_submodule(part)
            # a part without weights saves no memory, and an in-place activation may overwrite a stored input
            x = run_with_recompute(module, x, recompute=recompute and any(True for _ in module.parameters()))
            if part in self._outputs:
                maps.append(x)
        return self.finish(maps)

    def finish(self, maps: list[Tensor]) -> list[Tensor]:
        """Apply the last layers of the subclass to each map."""
        return [x.permute(0, 3, 1, 2) for x in maps] if self.channels_are_last else maps

    def fold_batch_norms(self) -> None:
        """Fold norms into convolutions, in place, if the maps stay the same; for eval mode only.

        Folding assumes that layers run in the order of registration, which does not hold for every network of timm.
        Such a network is left unchanged.
        """
        folded = copy.deepcopy(self)
        fold_batch_norms(folded)
        if _same_maps(self, folded):
            fold_batch_norms(self)


class ConvNextBackbone(StagedBackbone):
    """ConvNeXt with TAO's convolution after each stage: 256, 512, 1024 and 2048 channels for all sizes of the network.

    `conv_512` and so on are TAO's names; `conv_256` is ours, because TAO always uses the last three stages.
    """

    WIDTHS = (256, 512, 1024, 2048)

    def __init__(self, name: str, indices: Sequence[int], *args: Any, **options: Any) -> None:
        super().__init__(name, indices, *args, **options)
        inputs, self.channels = self.channels, tuple(self.WIDTHS[index] for index in self.indices)
        for width, channels in zip(inputs, self.channels, strict=True):
            conv = nn.Conv2d(width, channels, 3, padding=1)
            nn.init.trunc_normal_(conv.weight, std=0.02)
            zero_bias(conv)
            self.add_module(f"conv_{channels}", conv)

    def finish(self, maps: list[Tensor]) -> list[Tensor]:
        return [getattr(self, f"conv_{width}")(x) for width, x in zip(self.channels, maps, strict=True)]


class EfficientVitBackbone(StagedBackbone):
    """EfficientViT with TAO's layer norm over the channels of each map, `norm0` to `norm3` by stage."""

    def __init__(self, name: str, indices: Sequence[int], *args: Any, **options: Any) -> None:
        super().__init__(name, indices, *args, **options)
        for index, width in zip(self.indices, self.channels, strict=True):
            self.add_module(f"norm{index}", LayerNorm2d(width, eps=1e-5))

    def finish(self, maps: list[Tensor]) -> list[Tensor]:
        return [getattr(self, f"norm{index}")(x) for index, x in zip(self.indices, maps, strict=True)]


def _parts_up_to(network: nn.Module, outputs: Sequence[str]) -> list[str]:
    """Dotted names of the parts in order of execution, up to the last output; later ones are removed from `network`.

    A child is a part, or, if it contains an output, each of its children is.
    """
    parts: list[str] = []
    for name, child in network.named_children():
        if not any(output.startswith(f"{name}.") for output in outputs):
            parts.append(name)
        else:
            for inner, _ in list(child.named_children()):
                if parts and parts[-1] == outputs[-1]:
                    delattr(child, inner)
                else:
                    parts.append(f"{name}.{inner}")
        if parts[-1] == outputs[-1]:
            return parts
    raise LookupError(f"the network has no part {outputs[-1]}")


@torch.no_grad()
def _same_maps(first: ImageBackbone, second: ImageBackbone) -> bool:
    """Whether two backbones return the same maps for a random image, up to rounding."""
    generator, weight = torch.Generator().manual_seed(0), next(first.parameters())
    images = torch.rand(1, first.num_channels, 64, 64, generator=generator).to(weight.device, weight.dtype)
    with exact_float32():
        pairs = list(zip(first(images), second(images), strict=True))
    return all((a - b).abs().max() <= 1e-3 * a.abs().max() for a, b in pairs)
