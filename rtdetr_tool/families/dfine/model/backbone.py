"""HGNetV2 of PaddleDetection as D-FINE's backbone, with timm's names, which are also those of D-FINE's files."""

from __future__ import annotations

from typing import Any

from torch import nn

from rtdetr_tool.models.backbones.timm_staged import StagedBackbone

STAGES = 4


class HGNetV2(StagedBackbone):
    """Feature maps of an HGNetV2 at the stages in `indices` (0..3 = strides 4, 8, 16, 32); see `StagedBackbone`.

    B0 to B3 have a learnable scale and shift after each activation (LCNet's affine block), the others do not.
    """

    def adopt(self, network: Any) -> None:
        """As in the official code, convolutions start with the initial weights of `nn.Conv2d`.

        Those of timm are up to 7 times as large, or, in depthwise convolutions, a ninth. Batch norms cancel the scale
        in the outputs, but AdamW changes weights of any scale by about the learning rate.
        """
        super().adopt(network)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()

    @property
    def freezable_parts(self) -> tuple[tuple[str, ...], ...]:
        return (("stem",), *((f"stages.{stage}",) for stage in range(STAGES)))
