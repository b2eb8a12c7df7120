"""Tables of backbones, variants, published weights and layouts, used by spec options, documentation and builders."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

STRIDES = (4, 8, 16, 32)  # of stages 0..3, for every backbone
TIMM = "timm/"  # prefix of any timm network with feature maps of these strides

Options = Mapping[str, Any]

_NONE: Options = MappingProxyType({})

# Name in specs -> execution provider of onnxruntime.
ONNX_PROVIDERS: dict[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

# Name in specs -> class in torch.nn and its arguments.
ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("ReLU", {"inplace": True}),
    "gelu": ("GELU", {}),
    "silu": ("SiLU", {}),
    "prelu": ("PReLU", {}),
    "selu": ("SELU", {}),
    "leaky_relu": ("LeakyReLU", {"negative_slope": 0.01, "inplace": True}),
}


# Losses of RT-DETR that a spec can choose: varifocal (classes), and L1 and GIoU (boxes).
LOSS_TYPES = ("vfl", "boxes")
CLASS_LOSSES = ("vfl", "mal")


class Backbone(NamedTuple):
    """A backbone and its published weights."""

    name: str
    family: str
    timm_name: str | None  # the timm network it is based on; None = ours
    channels: tuple[int, int, int, int]  # of the stages 0..3
    parameters: int  # as built for the default return_interm_indices, [1, 2, 3]
    weights: str | None  # public weights; `timm/<name>.<tag>` for `pretrained_backbone_path: timm`
    license: str | None  # of these weights
    options: Options = _NONE  # differences from the timm network, or all options
    strides: tuple[int, int, int, int] = STRIDES
    origin: str = "tao"  # tao: TAO's schema; seed: TAO's documentation only; code: TAO's code only; ours: beyond TAO


_APACHE, _MIT, _CC_NC, _NVIDIA_NC = "Apache-2.0", "MIT", "CC-BY-NC-4.0", "NVIDIA Source Code License-NC"
DINOV3_LICENSE = "DINOv3 License"

_BASIC = (64, 128, 256, 512)
_BOTTLENECK = (256, 512, 1024, 2048)
_FB = "fb_in22k_ft_in1k"
_FCMAE = "fcmae_ft_in22k_in1k"
_TAO_CONVNEXT = (256, 512, 1024, 2048)  # channels of TAO's convolution after each stage, for all sizes of the network
_TAO_EPS: Options = MappingProxyType({"norm_eps": 1e-5})  # of TAO's batch norms; timm's are 1e-7
_VIT_L0: Options = MappingProxyType({"depths": (1, 1, 1, 4, 4), "norm_eps": 1e-5})


def _timm(
    name: str,
    tag: str | None,
    license: str,
    channels: tuple[int, int, int, int],
    parameters: int,
    network: str | None = None,
    options: Options = _NONE,
    origin: str = "tao",
) -> Backbone:
    """A row for the timm network with this name, or for `network`; `tag` None = there are no weights."""
    family = name.split("_")[0]
    network = network or (name.replace("_", "") if family == "resnet" else name)
    if tag is None:
        return Backbone(name, family, network, channels, parameters, None, None, options, origin=origin)
    weights = f"timm/{network}.{tag}"
    return Backbone(name, family, network, channels, parameters, weights, license, options, origin=origin)


def _fan(size: str, weights: str, parameters: int, width: int, heads: int, depth: int, **options: Any) -> Backbone:
    arguments = MappingProxyType({"width": width, "heads": heads, "depth": depth, **options})
    weights, channels = f"NVlabs/FAN fan_hybrid_{weights}", (128, 256, width, 768)
    return Backbone(f"fan_{size}", "fan", None, channels, parameters, weights, _NVIDIA_NC, arguments)


def _edgenext_bn(size: str, channels: tuple[int, int, int, int], parameters: int) -> Backbone:
    name, weights = f"edgenext_{size}_bn_hs", f"mmaaz60/EdgeNeXt edgenext_{size}_bn_hs"
    return Backbone(name, "edgenext_bn", f"edgenext_{size}", channels, parameters, weights, _MIT, origin="code")


def _dinov3_convnext(size: str, width: int, parameters: int) -> Backbone:
    network, channels = f"convnext_{size}", (width, 2 * width, 4 * width, 8 * width)
    name, weights = f"dinov3_{network}", f"timm/{network}.dinov3_lvd1689m"
    return Backbone(name, "dinov3_convnext", network, channels, parameters, weights, DINOV3_LICENSE, origin="ours")


def _dinov3_vit(size: str, width: int, parameters: int) -> Backbone:
    network, channels = f"vit_{size}_patch16_dinov3", (width // 4, width // 2, width, width)
    name, weights = f"dinov3_vit_{size}", f"timm/{network}.lvd1689m"
    return Backbone(name, "dinov3_vit", network, channels, parameters, weights, DINOV3_LICENSE, origin="ours")


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
    _fan("large", "large_in22k_1k", 74_155_036, width=480, heads=10, depth=22, stem_depths=(3, 5), map_block=18),
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
    _edgenext_bn("xx_small", (24, 48, 88, 168), 1_156_848),
    _edgenext_bn("x_small", (32, 64, 100, 192), 2_141_624),
    _edgenext_bn("small", (48, 96, 160, 304), 5_278_392),
    _dinov3_convnext("tiny", 96, 27_818_592),
    _dinov3_convnext("small", 96, 49_453_152),
    _dinov3_convnext("base", 128, 87_564_416),
    _dinov3_convnext("large", 192, 196_227_264),
    _dinov3_vit("small", 384, 22_473_024),
    _dinov3_vit("small_plus", 384, 29_569_344),
    _dinov3_vit("base", 768, 89_182_848),
)

BACKBONES: dict[str, Backbone] = {row.name: row for row in _ROWS}

# Aliases of backbones in TAO's code.
BACKBONE_ALIASES: dict[str, str] = {
    "fan_tiny_8_p4_hybrid": "fan_tiny",
    "fan_small_12_p4_hybrid": "fan_small",
    "fan_base_12_p4_hybrid": "fan_base",
    "fan_large_12_p4_hybrid": "fan_large",
}


# Initial weights of a run -> backbones whose stem and batch norms are frozen in the reference recipe. The ResNet-d are
# those of the official RT-DETR, which always freezes R50 and R101 and never R18 and R34. The plain ResNets are TAO's,
# which freezes them when it starts from a backbone's weights (model.pretrained_backbone_path) and trains everything
# when it starts from a detector's (train.pretrained_model_path).
FROM_BACKBONE, FROM_DETECTOR = "backbone", "detector"
_DEEP = ("resnet_50d", "resnet_101d")
FREEZING: dict[str, tuple[str, ...]] = {
    FROM_BACKBONE: ("resnet_18", "resnet_34", "resnet_50", "resnet_101", *_DEEP),
    FROM_DETECTOR: _DEEP,
}


class FoundationModel(NamedTuple):
    """A frozen model in addition to the backbone (`model.frozen_fm`). Users download its weights themselves."""

    name: str
    width: int
    depth: int
    num_heads: int
    parameters: int
    weights: str  # NVIDIA's name of the published weights
    license: str  # of the weights


_OPEN = "NVIDIA Open Model License"

FOUNDATION_MODELS: dict[str, FoundationModel] = {
    row.name: row
    for row in (
        FoundationModel("radio_v2-b", 768, 12, 12, 98_233_344, "nvidia/C-RADIOv2-B", _OPEN),
        FoundationModel("radio_v2-l", 1024, 24, 16, 319_881_216, "nvidia/C-RADIOv2-L", _OPEN),
        FoundationModel("radio_v2-h", 1280, 32, 16, 651_642_880, "nvidia/C-RADIOv2-H", _OPEN),
    )
}


# What a model predicts for each object; the names are those of fields of `Predictions`.
PREDICTS = (BOXES, MASKS, KEYPOINTS) = ("boxes", "masks", "keypoints")


class RfdetrVariant(NamedTuple):
    """Hyperparameters of a published RF-DETR; the spec's `model.rfdetr` fields have the same names."""

    name: str
    encoder: str
    out_feature_indexes: tuple[int, ...]  # ViT blocks (from 1) whose output becomes a feature map
    projector_scale: tuple[str, ...]
    hidden_dim: int
    dec_layers: int
    sa_nheads: int
    ca_nheads: int
    dec_n_points: int
    num_queries: int
    resolution: int
    patch_size: int
    num_windows: int
    positional_encoding_size: int
    parameters: int  # with 91 class logits and 13 query groups
    weights: str  # file name under which they are published
    license: str  # of these weights
    segmentation_head: bool = False
    use_grouppose_keypoints: bool = False
    num_keypoints_per_class: tuple[int, ...] = ()
    dual_projector: bool = False
    dual_projector_kp_only: bool = False
    cls_loss_coef: float = 1.0


# Kinds of RF-DETR's backbones: ViTs with windows, and ConvNeXts.
DINOV2, DINOV3, CONVNEXT = "DINOv2", "DINOv3", "DINOv3 ConvNeXt"


class Encoder(NamedTuple):
    """A backbone of RF-DETR."""

    name: str
    width: int  # of a ConvNeXt: of its first stage
    depth: int  # blocks; of a ConvNeXt: of its third stage
    num_heads: int
    num_registers: int
    weights: str  # on the Hugging Face hub; DINOv2's are for 37 x 37 patches of 14 pixels
    timm_name: str  # the same weights in timm
    kind: str = DINOV2
    gated: bool = False  # blocks of a ViT have a gated MLP

    @property
    def license(self) -> str:
        """Of the weights."""
        return _APACHE if self.kind == DINOV2 else DINOV3_LICENSE

    @property
    def unused_fields(self) -> tuple[str, ...]:
        """Fields of `model.rfdetr` that have no effect."""
        learned = ("positional_encoding_size",)
        return {DINOV2: (), DINOV3: learned, CONVNEXT: ("patch_size", "num_windows", *learned)}[self.kind]

    @property
    def num_outputs(self) -> int:
        """The number of blocks, or stages of a ConvNeXt, whose output can become a feature map."""
        return 4 if self.kind == CONVNEXT else self.depth


def _dinov3_encoder(size: str, hub: str, width: int, num_heads: int, gated: bool = False) -> Encoder:
    weights, network = f"facebook/dinov3-{hub}-pretrain-lvd1689m", f"vit_{size}_patch16_dinov3.lvd1689m"
    return Encoder(f"dinov3_windowed_{size}", width, 12, num_heads, 4, weights, network, DINOV3, gated)


def _convnext_encoder(size: str, width: int, depth: int) -> Encoder:
    weights, network = f"facebook/dinov3-convnext-{size}-pretrain-lvd1689m", f"convnext_{size}.dinov3_lvd1689m"
    return Encoder(f"dinov3_convnext_{size}", width, depth, 0, 0, weights, network, CONVNEXT)


_DINO_SMALL, _DINO_BASE = "dinov2_windowed_small", "dinov2_windowed_base"
_EVERY_THIRD, _EVERY_THIRD_LEGACY = (3, 6, 9, 12), (2, 5, 8, 11)
_PML = "PML-1.0"

ENCODERS: dict[str, Encoder] = {
    row.name: row
    for row in (
        Encoder(_DINO_SMALL, 384, 12, 6, 0, "facebook/dinov2-small", "vit_small_patch14_dinov2"),
        Encoder(_DINO_BASE, 768, 12, 12, 0, "facebook/dinov2-base", "vit_base_patch14_dinov2"),
        Encoder(
            "dinov2_registers_windowed_small",
            384,
            12,
            6,
            4,
            "facebook/dinov2-with-registers-small",
            "vit_small_patch14_reg4_dinov2",
        ),
        _dinov3_encoder("small", "vits16", 384, 6),
        _dinov3_encoder("small_plus", "vits16plus", 384, 6, gated=True),
        _dinov3_encoder("base", "vitb16", 768, 12),
        _convnext_encoder("tiny", 96, 9),
        _convnext_encoder("small", 96, 27),
        _convnext_encoder("base", 128, 27),
        _convnext_encoder("large", 192, 27),
    )
}


def _rfdetr(
    name: str, dec_layers: int, resolution: int, grid: int, parameters: int, weights: str, **changes: Any
) -> RfdetrVariant:
    """A row with the architecture of Nano, except for `changes`."""
    row = RfdetrVariant(
        name, _DINO_SMALL, _EVERY_THIRD, ("P4",), 256, dec_layers, 8, 16, 2, 300, resolution, 16, 2, grid, parameters,
        weights, _APACHE,
    )  # fmt: skip
    return row._replace(**changes)


_LEGACY: Any = {"out_feature_indexes": _EVERY_THIRD_LEGACY, "patch_size": 14, "num_windows": 4}
_WIDE: Any = {
    "encoder": _DINO_BASE, "hidden_dim": 512, "sa_nheads": 16, "ca_nheads": 32, "dec_n_points": 4, "patch_size": 20,
    "license": _PML,
}  # fmt: skip
_LARGE_2025: Any = {
    **_LEGACY, "encoder": _DINO_BASE, "projector_scale": ("P3", "P5"), "hidden_dim": 384, "sa_nheads": 12,
    "ca_nheads": 24, "dec_n_points": 4,
}  # fmt: skip
_SEGMENTATION: Any = {"patch_size": 12, "segmentation_head": True}
_KEYPOINTS: Any = {
    "patch_size": 12, "num_queries": 100, "use_grouppose_keypoints": True, "num_keypoints_per_class": (17,),
    "dual_projector": True, "dual_projector_kp_only": True, "cls_loss_coef": 2.0,
}  # fmt: skip

RFDETR_VARIANTS: dict[str, RfdetrVariant] = {
    row.name: row
    for row in (
        _rfdetr("nano", 2, 384, 24, 30_467_298, "rf-detr-nano.pth"),
        _rfdetr("small", 3, 512, 32, 32_111_170, "rf-detr-small.pth"),
        _rfdetr("medium", 4, 576, 36, 33_687_458, "rf-detr-medium.pth"),
        _rfdetr("base", 3, 560, 37, 32_174_530, "rf-detr-base.pth", **_LEGACY),
        _rfdetr("large", 4, 704, 44, 33_933_218, "rf-detr-large-2026.pth"),
        _rfdetr("large_2025", 3, 560, 37, 135_637_474, "rf-detr-large.pth", **_LARGE_2025),
        _rfdetr("xlarge", 5, 700, 35, 126_357_154, "rf-detr-xlarge.pth", **_WIDE, num_windows=1),
        _rfdetr("2xlarge", 5, 880, 44, 126_903_202, "rf-detr-xxlarge.pth", **_WIDE),
        *(
            _rfdetr(
                f"seg_{name}", layers, 12 * grid, grid, parameters, f"rf-detr-seg-{file}.pt", **_SEGMENTATION
            )._replace(num_queries=queries, num_windows=windows)
            for name, layers, queries, grid, windows, parameters, file in (
                ("preview", 4, 200, 36, 2, 34_153_555, "preview"),
                ("nano", 4, 100, 26, 1, 33_577_475, "nano"),
                ("small", 4, 100, 32, 2, 33_711_107, "small"),
                ("medium", 5, 200, 36, 2, 35_694_259, "medium"),
                ("large", 5, 200, 42, 2, 35_873_971, "large"),
                ("xlarge", 6, 300, 52, 2, 38_113_635, "xlarge"),
                ("2xlarge", 6, 300, 64, 2, 38_648_163, "xxlarge"),
            )
        ),
        _rfdetr("keypoint_preview", 4, 576, 48, 41_044_470, "rf-detr-keypoint-preview-xlarge.pth", **_KEYPOINTS),
    )
}


class DfineVariant(NamedTuple):
    """Hyper-parameters of a D-FINE as published; the spec's `model.dfine` fields have the same names."""

    name: str
    backbone: str  # a network of timm
    indices: tuple[int, ...]  # stages of the backbone
    hidden_dim: int
    dim_feedforward: int
    expansion: float
    depth_mult: float
    dec_hidden_dim: int
    dec_dim_feedforward: int
    dec_layers: int
    num_points: tuple[int, ...]
    reg_scale: float
    frozen: bool  # stem and batch norms of the backbone are frozen in training
    parameters: int  # with 80 classes
    weights: str = ""  # file name under which they are published
    license: str = ""  # of these weights


DFINE_HEADS = 8  # of all attention
_FINE, _POINTS = (1, 2, 3), (3, 6, 3)

DFINE_VARIANTS: dict[str, DfineVariant] = {
    row.name: row._replace(weights=f"dfine_{row.name}_coco.pth", license=_APACHE)
    for row in (
        DfineVariant("n", "hgnetv2_b0", (2, 3), 128, 512, 0.34, 0.5, 128, 512, 3, (6, 6), 4.0, False, 3_782_691),
        DfineVariant("s", "hgnetv2_b0", _FINE, 256, 1024, 0.5, 0.34, 256, 1024, 3, _POINTS, 4.0, False, 10_321_875),
        DfineVariant("m", "hgnetv2_b2", _FINE, 256, 1024, 1.0, 0.67, 256, 1024, 4, _POINTS, 4.0, False, 19_590_062),
        DfineVariant("l", "hgnetv2_b4", _FINE, 256, 1024, 1.0, 1.0, 256, 1024, 6, _POINTS, 4.0, True, 31_289_846),
        DfineVariant("x", "hgnetv2_b5", _FINE, 384, 2048, 1.0, 1.0, 256, 1024, 6, _POINTS, 8.0, True, 62_715_478),
    )
}


class RestrictedLicence(NamedTuple):
    """A license that must be accepted before its weights can be used."""

    title: str
    accepted_by: str  # field of the spec


RESTRICTED: dict[str, RestrictedLicence] = {
    _PML: RestrictedLicence("Roboflow's Platform Model License 1.0", "model.rfdetr.accept_platform_model_license"),
}


# Licenses of published weights that also apply to weights trained from them.
INHERITED_LICENSES = (*RESTRICTED, DINOV3_LICENSE)


class PublishedWeights(NamedTuple):
    """Published weights that can be used by file name, with or without suffix."""

    file: str
    url: str
    md5: str | None  # of the content, as published; None: none is stated
    license: str


_ROBOFLOW = "https://storage.googleapis.com/rfdetr/"
# File name -> (path below Roboflow's URL, MD5), from rfdetr 1.11.2.
_ROBOFLOW_FILES: dict[str, tuple[str, str]] = {
    "rf-detr-nano.pth": ("nano_coco/checkpoint_best_regular.pth", "fb6504cce7fbdc783f7a46991f07639f"),
    "rf-detr-small.pth": ("small_coco/checkpoint_best_regular.pth", "fb37061c1af7bace359c91b723a8d5c1"),
    "rf-detr-medium.pth": ("medium_coco/checkpoint_best_regular.pth", "7223f764a87b863f02eb8d52bf0ce2ee"),
    "rf-detr-base.pth": ("rf-detr-base-coco.pth", "b4d3ce46099eaed50626ede388caf979"),
    "rf-detr-large-2026.pth": ("rf-detr-large-2026.pth", "5cb72153541cbcb9aa6efa26222acc75"),
    "rf-detr-large.pth": ("rf-detr-large.pth", "992c8e862aa733a7bb2777e45d49f1a0"),
    "rf-detr-seg-preview.pt": ("rf-detr-seg-preview.pt", "e35820c28fb86080558123e47a5e49ca"),
    "rf-detr-seg-nano.pt": ("rf-detr-seg-n-ft.pth", "9995497791d0ff1664a1d9ddee9cfd20"),
    "rf-detr-seg-small.pt": ("rf-detr-seg-s-ft.pth", "0a2a3006381d0c42853907e700eadd08"),
    "rf-detr-seg-medium.pt": ("rf-detr-seg-m-ft.pth", "a49af1562c3719227ad43d0ca53b4c7a"),
    "rf-detr-seg-large.pt": ("rf-detr-seg-l-ft.pth", "275f7b094909544ed2841c94a677d07e"),
    "rf-detr-seg-xlarge.pt": ("rf-detr-seg-xl-ft.pth", "3693b35d0eea86ebb3e0444f4a611fba"),
    "rf-detr-seg-xxlarge.pt": ("rf-detr-seg-2xl-ft.pth", "040bc3412af840fa8a47e0ff69b552ba"),
    "rf-detr-keypoint-preview-xlarge.pth": ("rf-detr-keypoint-preview-xlarge.pth", "6de511943ee85a547d4c5cb527daf0eb"),
    # From rfdetr_plus 1.1.0, which is published under the same license as these weights.
    "rf-detr-xlarge.pth": ("platform-licensed/rf-detr-xlarge.pth", "6ddf834f2bc5bed3214a82f9b0aaeed7"),
    "rf-detr-xxlarge.pth": ("platform-licensed/rf-detr-xxlarge.pth", "e3204689c1f0280427e4c33e6a2ac6cd"),
}

PUBLISHED_WEIGHTS: dict[str, PublishedWeights] = {
    row.weights: PublishedWeights(
        row.weights, _ROBOFLOW + _ROBOFLOW_FILES[row.weights][0], _ROBOFLOW_FILES[row.weights][1], row.license
    )
    for row in RFDETR_VARIANTS.values()
}

_PETERANDE = "https://github.com/Peterande/storage/releases/download/dfinev1.0/"
# Trained on COCO, or on Objects365 and then COCO, as the official repository links them.
PUBLISHED_WEIGHTS |= {
    file: PublishedWeights(file, _PETERANDE + file, None, _APACHE)
    for file in (
        *(row.weights for row in DFINE_VARIANTS.values()),
        *(f"dfine_{name}.pth" for name in ("s_obj2coco", "m_obj2coco", "l_obj2coco_e25", "x_obj2coco")),
    )
}

PROJECTOR_SCALES: dict[str, float] = {"P3": 2.0, "P4": 1.0, "P5": 0.5}  # size of a level relative to the ViT's map


class Layout(NamedTuple):
    """Names of a deployed detector's input and outputs, and its pixel format."""

    input: str
    # Field of `Predictions` -> name, in the order of the file; masks and keypoints only if the detector predicts them.
    outputs: Any
    normalised: bool  # with the mean and standard deviation of ImageNet; otherwise RGB 0..1
    background: bool  # the last class score belongs to no class


_TAO_OUTPUTS = {"logits": "pred_logits", "boxes": "pred_boxes", MASKS: "pred_masks", KEYPOINTS: "pred_keypoints"}
_RFDETR_OUTPUTS = {"boxes": "dets", "logits": "labels", MASKS: "masks", KEYPOINTS: "keypoints"}

LAYOUTS: dict[str, Layout] = {
    "tao": Layout("inputs", _TAO_OUTPUTS, False, False),
    "rfdetr": Layout("input", _RFDETR_OUTPUTS, True, True),
}

# The 80 category ids that COCO detection uses out of 1..90, and their names (instances_train2017.json).
COCO_CATEGORIES: dict[int, str] = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe",
    27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard",
    42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife",
    50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot",
    58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard",
    77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book",
    85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}  # fmt: skip
# The other published spelling of COCO's names (Pascal VOC, transformers' RT-DETR) -> COCO's own.
COCO_SPELLINGS: dict[str, str] = {
    "motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "pottedplant": "potted plant",
    "diningtable": "dining table", "tvmonitor": "tv",
}  # fmt: skip
