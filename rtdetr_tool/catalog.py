"""Pure data: every backbone the spec can name, one row each. Spec options, documentation and builders read it.

`channels` are those of strides 4, 8, 16 and 32. `built` says whether this version can build the backbone; the others
are names of TAO's schema, so that a spec naming them is understood and answered.
"""

from __future__ import annotations

from typing import NamedTuple


class Backbone(NamedTuple):
    name: str
    family: str
    timm_name: str | None = None
    channels: tuple[int, ...] = ()
    strides: tuple[int, ...] = (4, 8, 16, 32)
    origin: str = "tao"  # tao: TAO's schema; seed: TAO's documentation only; ours: beyond TAO

    @property
    def built(self) -> bool:
        return self.timm_name is not None


_BASIC = (64, 128, 256, 512)
_BOTTLENECK = (256, 512, 1024, 2048)

BACKBONES: dict[str, Backbone] = {
    row.name: row
    for row in (
        Backbone("resnet_18", "resnet", "resnet18", _BASIC),
        Backbone("resnet_34", "resnet", "resnet34", _BASIC),
        Backbone("resnet_50", "resnet", "resnet50", _BOTTLENECK),
        Backbone("resnet_101", "resnet", "resnet101", _BOTTLENECK),
        Backbone("resnet_18d", "resnet", "resnet18d", _BASIC, origin="ours"),
        Backbone("resnet_34d", "resnet", "resnet34d", _BASIC, origin="ours"),
        Backbone("resnet_50d", "resnet", "resnet50d", _BOTTLENECK, origin="ours"),
        Backbone("resnet_101d", "resnet", "resnet101d", _BOTTLENECK, origin="ours"),
        *(Backbone(f"convnext_{size}", "convnext") for size in ("tiny", "small", "base", "large", "xlarge")),
        *(
            Backbone(f"convnextv2_{size}", "convnextv2", origin="seed")
            for size in ("nano", "tiny", "base", "large", "huge")
        ),
        *(Backbone(f"fan_{size}", "fan") for size in ("tiny", "small", "base", "large")),
        *(Backbone(f"efficientvit_{kind}{size}", "efficientvit") for kind in "bl" for size in range(4)),
    )
}

BUILT_BACKBONES: tuple[str, ...] = tuple(name for name, row in BACKBONES.items() if row.built)

# Other names of the same backbone, as TAO's code registers them.
BACKBONE_ALIASES: dict[str, str] = {
    "fan_tiny_8_p4_hybrid": "fan_tiny",
    "fan_small_12_p4_hybrid": "fan_small",
    "fan_base_12_p4_hybrid": "fan_base",
    "fan_large_12_p4_hybrid": "fan_large",
}


class FoundationModel(NamedTuple):
    """A frozen model beside the backbone (`model.frozen_fm`). Its weights are downloaded by the user."""

    name: str
    width: int
    depth: int
    num_heads: int
    parameters: int
    weights: str  # name under which NVIDIA publishes them
    licence: str  # of the weights


_OPEN = "NVIDIA Open Model License"

FOUNDATION_MODELS: dict[str, FoundationModel] = {
    row.name: row
    for row in (
        FoundationModel("radio_v2-b", 768, 12, 12, 98_233_344, "nvidia/C-RADIOv2-B", _OPEN),
        FoundationModel("radio_v2-l", 1024, 24, 16, 319_881_216, "nvidia/C-RADIOv2-L", _OPEN),
        FoundationModel("radio_v2-h", 1280, 32, 16, 651_642_880, "nvidia/C-RADIOv2-H", _OPEN),
    )
}
