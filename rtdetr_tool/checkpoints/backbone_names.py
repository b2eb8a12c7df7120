"""Tables that rename backbone tensors of other programs to ours: timm's names (FAN: its repository's), no `backbone.`.

NVIDIA TAO keeps the names of the networks' original repositories (facebookresearch/ConvNeXt and ConvNeXt-V2,
mmaaz60/EdgeNeXt, mit-han-lab/efficientvit, NVlabs/FAN), so one table serves both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from rtdetr_tool.checkpoints import dinov3
from rtdetr_tool.checkpoints.renames import Table, to_foreign, to_native

# Classifier heads of ImageNet models, which a detector does not use.
CLASSIFIER = ("fc.", "head.", "classifier.")


class Naming(NamedTuple):
    """The tensor names of some backbones and the table that renames them; None if they are ours already."""

    marker: str  # start of a name that only these files have
    table: Table | None
    dropped: tuple[str, ...] = ()  # regular expressions of tensors that no feature map depends on
    prepare: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict  # before names are replaced


NAMINGS = (
    Naming(  # ConvNeXt, ConvNeXt V2, EdgeNeXt
        "downsample_layers.0.",
        (
            ("downsample_layers.0.", "stem."),
            ("downsample_layers.*.", "stages.*.downsample."),
            ("stages.*.*.dwconv.", "stages.*.blocks.*.conv_dw."),
            ("stages.*.*.pwconv1.", "stages.*.blocks.*.mlp.fc1."),
            ("stages.*.*.pwconv2.", "stages.*.blocks.*.mlp.fc2."),
            ("stages.*.*.grn.gamma", "stages.*.blocks.*.mlp.grn.weight"),
            ("stages.*.*.grn.beta", "stages.*.blocks.*.mlp.grn.bias"),
            ("stages.*.*.", "stages.*.blocks.*."),
            ("conv_", "conv_"),  # TAO's convolutions after the stages of ConvNeXt
        ),
        (r"norm\.", r"norms\."),
    ),
    Naming(  # torchvision's ConvNeXt: the stem, then stages and downsampling layers alternately
        "features.1.0.layer_scale",
        (
            ("features.0.", "stem."),
            *((f"features.{2 * stage}.", f"stages.{stage}.downsample.") for stage in (1, 2, 3)),
            *(
                (f"features.{2 * stage + 1}.*.{foreign}", f"stages.{stage}.blocks.*.{native}")
                for stage in range(4)
                for foreign, native in (
                    ("block.0.", "conv_dw."),
                    ("block.2.", "norm."),
                    ("block.3.", "mlp.fc1."),
                    ("block.5.", "mlp.fc2."),
                    ("layer_scale", "gamma"),
                )
            ),
        ),
    ),
    Naming(  # EfficientViT B; norm0 to norm3 are TAO's
        "input_stem.op_list.",
        (
            ("input_stem.op_list.0.", "stem.in_conv."),
            ("input_stem.op_list.1.", "stem.res0."),
            ("stages.*.op_list.*.", "stages.*.blocks.*."),
            ("norm", "norm"),
        ),
    ),
    Naming(  # EfficientViT L, whose stage 0 is the stem
        "stages.0.op_list.",
        (
            ("stages.0.op_list.0.", "stem.in_conv."),
            ("stages.0.op_list.1.", "stem.res0."),
            *((f"stages.{stage + 1}.op_list.*.", f"stages.{stage}.blocks.*.") for stage in range(4)),
            ("norm", "norm"),
        ),
    ),
    Naming(  # FAN: no feature map depends on the class token
        "patch_embed.backbone.stem.",
        None,
        (r"cls_token$", r"cls_attn_blocks\.\d+\.(attn|mlp|gamma2)", r"norm\."),
    ),
    Naming("embeddings.patch_embeddings.", dinov3.TRANSFORMERS_VIT, dinov3.UNUSED_VIT, dinov3.join_projections),
    Naming("storage_tokens", dinov3.META_VIT, dinov3.UNUSED_VIT, dinov3.without_biases),
    Naming("stages.0.downsample_layers.", dinov3.TRANSFORMERS_CONVNEXT, (r"layer_norm\.",)),
)


def native_backbone_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a backbone under our names; names that are ours already are kept.

    Raises:
        CheckpointError: tensors without a counterpart, which the message lists.
    """
    family = next((row for row in NAMINGS if any(name.startswith(row.marker) for name in weights)), None)
    if family is None:
        return dict(weights)
    dropped = re.compile("|".join((*map(re.escape, CLASSIFIER), *family.dropped)))
    kept = {name: tensor for name, tensor in weights.items() if not dropped.match(name)}
    return kept if family.table is None else to_native(family.prepare(kept), family.table)


# Family in the catalog -> marker of TAO's names for it. Others have the same names.
_IN_TAO = {
    "convnext": "downsample_layers.0.",
    "convnextv2": "downsample_layers.0.",
    "edgenext": "downsample_layers.0.",
    "edgenext_bn": "downsample_layers.0.",
    "efficientvit_b": "input_stem.op_list.",
    "efficientvit_l": "stages.0.op_list.",
}


def tao_backbone_names(weights: Mapping[str, Tensor], name: str, family: str) -> tuple[dict[str, Tensor], str]:
    """The weights of a backbone under TAO's names, and what else TAO expects (empty: nothing)."""
    if family == "efficientvit":
        family = name[: len("efficientvit_b")]
    marker = _IN_TAO.get(family)
    if marker is None:
        return dict(weights), "the class blocks of the backbone" if family == "fan" else ""
    table = next(row.table for row in NAMINGS if row.marker == marker)
    assert table is not None
    renamed = {
        new: tensor.reshape(1, 1, 1, -1) if ".grn." in new else tensor
        for new, tensor in to_foreign(weights, table).items()
    }
    return renamed, "the last norm of the backbone" if marker == "downsample_layers.0." else ""
