"""HGNetV2 of PaddleDetection as D-FINE's backbone, with timm's names, which are also those of D-FINE's files."""

from __future__ import annotations

from rtdetr_tool.models.backbones.timm_staged import StagedBackbone

STAGES = 4


class HGNetV2(StagedBackbone):
    """Feature maps of an HGNetV2 at the stages in `indices` (0..3 = strides 4, 8, 16, 32); see `StagedBackbone`.

    B0 to B3 have a learnable scale and shift after each activation (LCNet's affine block), the others do not.
    """

    @property
    def freezable_parts(self) -> tuple[tuple[str, ...], ...]:
        return (("stem",), *((f"stages.{stage}",) for stage in range(STAGES)))
