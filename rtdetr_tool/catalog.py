"""Pure data: every backbone the spec can name, one row each. Spec options, documentation and builders read it."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, NamedTuple

STRIDES = (4, 8, 16, 32)  # of the stages 0..3, of every backbone
TIMM = "timm/"  # a backbone called `timm/<name>` is any network of timm with feature maps of these strides

_NONE: Any = MappingProxyType({})


class Backbone(NamedTuple):
    """A backbone and the weights that are published for it."""

    name: str
    family: str
    timm_name: str | None  # the network of timm that it is made of; None = ours
    channels: tuple[int, int, int, int]  # of the stages 0..3
    parameters: int  # as built for the default return_interm_indices, [1, 2, 3]
    weights: str | None  # public ImageNet weights: `timm/<name>.<tag>` is what `pretrained_backbone_path: timm` gives
    licence: str | None  # of these weights
    options: Any = _NONE  # where it differs from the network of timm, or all of it
    strides: tuple[int, int, int, int] = STRIDES
    origin: str = "tao"  # tao: TAO's schema; seed: TAO's documentation only; code: TAO's code only; ours: beyond TAO


_APACHE, _MIT, _CC_NC, _NVIDIA_NC = "Apache-2.0", "MIT", "CC-BY-NC-4.0", "NVIDIA Source Code License-NC"

_BASIC = (64, 128, 256, 512)
_BOTTLENECK = (256, 512, 1024, 2048)
_FB = "fb_in22k_ft_in1k"
_FCMAE = "fcmae_ft_in22k_in1k"
_TAO_CONVNEXT = (256, 512, 1024, 2048)  # TAO's convolution behind each stage gives these, whatever the network's size
_TAO_EPS: Any = MappingProxyType({"norm_eps": 1e-5})  # of TAO's batch norms; timm's are 1e-7
_VIT_L0: Any = MappingProxyType({"depths": (1, 1, 1, 4, 4), "norm_eps": 1e-5})


def _timm(
    name: str,
    tag: str | None,
    licence: str,
    channels: tuple[int, int, int, int],
    parameters: int,
    network: str | None = None,
    options: Any = _NONE,
    origin: str = "tao",
) -> Backbone:
    """A row made of the network of timm that has this name, or of `network`; `tag` None = there are no weights."""
    family = name.split("_")[0]
    network = network or (name.replace("_", "") if family == "resnet" else name)
    weights, licence = (None, None) if tag is None else (f"timm/{network}.{tag}", licence)
    return Backbone(name, family, network, channels, parameters, weights, licence, options, origin=origin)


def _fan(
    size: str, weights: str, parameters: int, width: int, heads: int, depth: int, **options: Any
) -> Backbone:
    options = MappingProxyType({"width": width, "heads": heads, "depth": depth, **options})
    weights, channels = f"NVlabs/FAN fan_hybrid_{weights}", (128, 256, width, 768)
    return Backbone(f"fan_{size}", "fan", None, channels, parameters, weights, _NVIDIA_NC, options)


_ROWS = (
    _timm("resnet_18", "a1_in1k", _APACHE, _BASIC, 11_176_512),
    _timm("resnet_34", "a1_in1k", _APACHE, _BASIC, 21_284_672),
    _timm("resnet_50", "a1_in1k", _APACHE, _BOTTLENECK, 23_508_032),
    _timm("resnet_101", "a1h_in1k", _APACHE, _BOTTLENECK, 42_500_160),
    _timm("resnet_18d", "ra2_in1k", _APACHE, _BASIC, 11_199_968, origin="ours"),
    _timm("resnet_34d", "ra2_in1k", _APACHE, _BASIC, 21_308_128, origin="ours"),
    _timm("resnet_50d", "ra2_in1k", _APACHE, _BOTTLENECK, 23_527_264, origin="ours"),
    _timm("resnet_101d", "ra2_in1k", _APACHE, _BOTTLENECK, 42_519_392, origin="ours"),
    _timm("convnext_tiny", "in12k_ft_in1k", _APACHE, _TAO_CONVNEXT, 46_401_632),
    _timm("convnext_small", "in12k_ft_in1k", _APACHE, _TAO_CONVNEXT, 68_036_192),
    _timm("convnext_base", _FB, _APACHE, _TAO_CONVNEXT, 112_340_608),
    _timm("convnext_large", _FB, _APACHE, _TAO_CONVNEXT, 233_389_760),
    _timm("convnext_xlarge", _FB, _APACHE, _TAO_CONVNEXT, 397_692_672),
    _timm("convnextv2_nano", _FCMAE, _CC_NC, (80, 160, 320, 640), 14_981_520, origin="seed"),
    _timm("convnextv2_tiny", _FCMAE, _CC_NC, (96, 192, 384, 768), 27_864_960, origin="seed"),
    _timm("convnextv2_base", _FCMAE, _CC_NC, (128, 256, 512, 1024), 87_690_752, origin="seed"),
    _timm("convnextv2_large", _FCMAE, _CC_NC, (192, 384, 768, 1536), 196_416_768, origin="seed"),
    _timm("convnextv2_huge", f"{_FCMAE}_384", _CC_NC, (352, 704, 1408, 2816), 657_467_008, origin="seed"),
    _fan("tiny", "tiny", 7_715_392, width=192, heads=8, depth=8),
    _fan("small", "small", 24_842_960, width=384, heads=8, depth=10),
    _fan("base", "base", 48_299_136, width=448, heads=8, depth=16),
    _fan("large", "large_in22k_1k", 74_155_036, width=480, heads=10, depth=22, stem_depths=(3, 5), tap=18),
    _timm("efficientvit_b0", "r224_in1k", _APACHE, (16, 32, 64, 128), 683_056),
    _timm("efficientvit_b1", "r224_in1k", _APACHE, (32, 64, 128, 256), 4_644_832),
    _timm("efficientvit_b2", "r224_in1k", _APACHE, (48, 96, 192, 384), 14_978_352),
    _timm("efficientvit_b3", "r224_in1k", _APACHE, (64, 128, 256, 512), 38_999_232),
    _timm("efficientvit_l0", None, _APACHE, (64, 128, 256, 512), 27_807_264, "efficientvit_l1", _VIT_L0),
    _timm("efficientvit_l1", "r224_in1k", _APACHE, (64, 128, 256, 512), 38_039_072, options=_TAO_EPS),
    _timm("efficientvit_l2", "r224_in1k", _APACHE, (64, 128, 256, 512), 49_092_000, options=_TAO_EPS),
    _timm("efficientvit_l3", "r224_in1k", _APACHE, (128, 256, 512, 1024), 194_001_728, options=_TAO_EPS),
    _timm("edgenext_x_small", "in1k", _MIT, (32, 64, 100, 192), 2_143_420, origin="code"),
    _timm("edgenext_small", "usi_in1k", _MIT, (48, 96, 160, 304), 5_281_224, origin="code"),
    _timm("edgenext_base", "usi_in1k", _MIT, (80, 160, 288, 584), 17_925_124, origin="code"),
)

BACKBONES: dict[str, Backbone] = {row.name: row for row in _ROWS}

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
