"""The base class of backbones that are built from a network of timm."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import timm

from rtdetr_tool.models.backbones.base import ImageBackbone


class TimmBackbone(ImageBackbone):
    """Feature maps of a timm network at the stages in `indices` (0..3 = strides 4, 8, 16, 32).

    Args:
        name: a network of timm, for example `convnext_tiny`.
        indices: stages to return, ascending.
        activation_checkpoint: recompute parts of the network in the backward pass to save memory.
        num_channels: of images.
        options: more arguments of the timm network, for example its `depths`.
    """

    def __init__(
        self,
        name: str,
        indices: Sequence[int],
        activation_checkpoint: bool = False,
        num_channels: int = 3,
        **options: Any,
    ) -> None:
        super().__init__()
        self.indices, self.num_channels = tuple(indices), num_channels
        self.activation_checkpoint = activation_checkpoint
        if num_channels != 3:  # not every network of timm has the argument
            options["in_chans"] = num_channels
        self.adopt(timm.create_model(name, num_classes=0, **options))

    @abstractmethod
    def adopt(self, network: Any) -> None:
        """Register the parts of the network that the maps need, and set `channels` and `strides`.

        The attributes of timm's networks are not declared.
        """
