"""Convert tensor names of the official RT-DETR (lyuwenyu/RT-DETR, PyTorch, version 1 and 2) to ours.

Ours are those of version 1, except for the backbone, which has timm's names. Version 2 names the parts of projections
`conv`, `norm` and `proj` instead of numbering them, and stores the share of each sampling point as a buffer.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rtdetr_tool.checkpoints.official_names import NECK_TABLE, POINT_SHARES, has_named_parts, without_constants
from rtdetr_tool.checkpoints.renames import split_by_prefix, to_native

# Stem of the d variant (three convolutions) and of the plain one.
_DEEP_STEM = (
    ("conv1.conv1_1.conv.", "conv1.0."),
    ("conv1.conv1_1.norm.", "conv1.1."),
    ("conv1.conv1_2.conv.", "conv1.3."),
    ("conv1.conv1_2.norm.", "conv1.4."),
    ("conv1.conv1_3.conv.", "conv1.6."),
    ("conv1.conv1_3.norm.", "bn1."),
)
_PLAIN_STEM = (("conv1.conv1_1.conv.", "conv1."), ("conv1.conv1_1.norm.", "bn1."))


def backbone_table(deep_stem: bool) -> tuple[tuple[str, str], ...]:
    """(official, timm) names of a ResNet, without the prefix `backbone.`.

    In the d variant the shortcut of downsampling stages is a pooling and a ConvNorm, which is one level deeper.
    """
    downsampling = (("short.conv.conv", "downsample.1"), ("short.conv.norm", "downsample.2"))
    plain = (("short.conv", "downsample.0"), ("short.norm", "downsample.1"))
    same_size = (("short.conv", "downsample.1"), ("short.norm", "downsample.2"))
    branches = (
        *((f"branch2{letter}.conv", f"conv{number}") for number, letter in enumerate("abc", 1)),
        *((f"branch2{letter}.norm", f"bn{number}") for number, letter in enumerate("abc", 1)),
    )
    return (
        *(_DEEP_STEM if deep_stem else _PLAIN_STEM),
        *(
            (f"res_layers.{stage}.blocks.*.{foreign}.", f"layer{stage + 1}.*.{native}.")
            for stage in range(4)
            for foreign, native in (*branches, *(plain if not deep_stem else downsampling if stage else same_size))
        ),
    )


def is_official_rtdetr(names: Mapping[str, Tensor]) -> bool:
    """Whether these are names of the official repository that differ from ours."""
    known = any(name.startswith("backbone.res_layers.") for name in names) or is_version_2(names)
    return known and not has_gates(names)


def has_gates(names: Mapping[str, Tensor]) -> bool:
    """Whether the decoder's layers have gates, with which these are names of another design built on this one."""
    return any(".gateway." in name for name in names)


def is_official_backbone(names: Mapping[str, Tensor]) -> bool:
    """Whether these are names of the official repository's ResNet alone."""
    return any(name.startswith("res_layers.") for name in names)


def is_version_2(names: Mapping[str, Tensor]) -> bool:
    return has_named_parts(names) or any(name.endswith(POINT_SHARES) for name in names)


def from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace official names by ours; CheckpointError if a tensor has no counterpart."""
    backbone, neck = split_by_prefix(without_constants(state_dict), "backbone.")
    renamed = {f"backbone.{name}": tensor for name, tensor in from_official_backbone(backbone).items()}
    return {**renamed, **to_native(neck, NECK_TABLE)}


def from_official_backbone(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace the names of an official ResNet by timm's."""
    return to_native(state_dict, backbone_table(deep_stem="conv1.conv1_2.conv.weight" in state_dict))
