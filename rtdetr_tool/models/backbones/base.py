"""The interface of backbones for detectors, training and export."""

from __future__ import annotations

import re
from abc import abstractmethod

from torch import Tensor, nn

# Names of blocks in timm's networks and FAN.
_BLOCK = re.compile(r"(?:.*?\.)??(?:\w*blocks\.\d+(?:\.\d+)?|layer\d+\.\d+|s\d+\.b\d+)\.")


class ImageBackbone(nn.Module):
    """images [B, num_channels, H, W] -> one map [B, C, H / stride, W / stride] for each of `channels` and `strides`."""

    num_channels: int = 3  # of images
    channels: tuple[int, ...]  # of the maps
    strides: tuple[int, ...]
    # Dotted name of the module whose parameters have the names of published files. Other parameters are trained like
    # those of the rest of the detector: with its learning rate, and also if the backbone is frozen or has adapters.
    published_name: str = ""

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """The feature maps, finest first."""

    @property
    def published(self) -> nn.Module:
        """The module whose parameters have the names of published files."""
        return self.get_submodule(self.published_name)

    def is_published(self, name: str) -> bool:
        """Whether published files have the parameter with this name."""
        return not self.published_name or name.startswith(f"{self.published_name}.")

    @property
    def freezable_parts(self) -> tuple[tuple[str, ...], ...] | None:
        """Names of the modules of the stem and of each stage, in order; None for networks without such parts."""
        return None

    def layer_numbers(self) -> dict[str, int]:
        """The layer of each parameter, for layer-wise learning rates: 0 in the stem, then one per block."""
        numbers: dict[str, int] = {}
        blocks: list[str] = []
        for name, _ in self.named_parameters():
            block = _BLOCK.match(name)
            if block is None:  # layers before a block count as part of it
                numbers[name] = len(blocks) + 1 if blocks else 0
                continue
            if block.group() not in blocks:
                blocks.append(block.group())
            numbers[name] = blocks.index(block.group()) + 1
        return numbers

    def embedding_names(self) -> frozenset[str]:
        """The names of parameters that embed positions and patches, which some recipes do not decay."""
        return frozenset()

    def fold_batch_norms(self) -> None:
        """Fold norms into convolutions in place, if the outputs stay the same; for eval mode only."""
