"""Convert tensor names of Roboflow's RF-DETR (rfdetr 1.x) to ours and back.

A file has `model` (published weights, checkpoint_best_*.pth), or a Lightning `state_dict` with the prefix `model.`
(last.ckpt).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rtdetr_tool.checkpoints.adapters import merge_adapters
from rtdetr_tool.checkpoints.dinov2 import TRANSFORMERS as DINOV2_TABLE
from rtdetr_tool.checkpoints.renames import to_foreign, to_native
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rfdetr.model.keypoint_layers import blocked_pairs

_VIT = "backbone.0.encoder.encoder."
_HEADS = ("class_embed.", "bbox_embed.", "refpoint_embed.", "query_feat.")
_MASKS = ("segmentation_head.", "segmentation_head.")
_SECOND_ENCODER = ("backbone.0.cross_attn_projector.", "second_encoder.")
_ACTIVE, _BLOCKED = "_kp_active_mask", "transformer.decoder.keypoint_class_mask"  # buffers
_KEYPOINTS = ((_ACTIVE, "decoder.keypoint_active"), ("keypoint_embed.", "decoder.keypoint_embed."))
TABLE: tuple[tuple[str, str], ...] = (
    *((_VIT + foreign, f"backbone.{native}") for foreign, native in DINOV2_TABLE),
    ("backbone.0.projector.", "encoder."),
    ("transformer.decoder.", "decoder."),
    ("transformer.", "decoder."),
    *((name, f"decoder.{name}") for name in _HEADS),
    _MASKS,
    _SECOND_ENCODER,
    *_KEYPOINTS,
)
# The reverse depends on the part of our decoder.
_BACK: tuple[tuple[str, str], ...] = (
    *TABLE[: len(DINOV2_TABLE) + 1],
    *((f"transformer.decoder.{name}.", f"decoder.{name}.") for name in ("layers", "norm", "ref_point_head")),
    *((name, f"decoder.{name}") for name in _HEADS),
    ("transformer.enc_", "decoder.enc_"),
    ("transformer.keypoint_query_initializer", "decoder.keypoint_query_initializer"),
    ("transformer.decoder.keypoint_pos_embed", "decoder.keypoint_pos_embed"),
    _MASKS,
    _SECOND_ENCODER,
    *_KEYPOINTS,
)
_SHARED_HEAD = "transformer.decoder.bbox_embed."  # a second name of bbox_embed without lite_refpoint_refine
_WRAPPERS = ("model.", "module.", "_orig_mod.")
_LORA = "backbone.0.encoder.base_model.model."  # instead of the first part of _VIT, in runs with backbone_lora
# Unsupported parts -> what they belong to.
_REFUSED = {
    "transformer.register_tokens": "decoder registers",
}


def has_rfdetr_names(names: Mapping[str, Tensor]) -> bool:
    """Whether these are names of an RF-DETR in files of Roboflow's package, with or without prefixes of wrappers."""
    plain = [without_wrappers(name) for name in names]
    return any(name.startswith((_VIT, _LORA)) for name in plain) and "refpoint_embed.weight" in plain


def has_native_names(names: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of an RF-DETR with our names."""
    return "decoder.refpoint_embed.weight" in names and any(name.startswith("backbone.") for name in names)


def without_wrappers(name: str) -> str:
    """A tensor's name without the prefixes of Lightning, DDP and torch.compile."""
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name.replace("._orig_mod.", ".")


def from_rfdetr(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace RF-DETR's names by ours and merge its adapters; CheckpointError if a tensor has no counterpart."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        name = without_wrappers(name).replace(_LORA, "backbone.0.encoder.")
        for start, what in _REFUSED.items():
            if name.startswith(start):
                raise CheckpointError(f"its {name} belongs to {what}, which is not supported")
        unused = name == _BLOCKED or (name == _ACTIVE and not tensor.numel())  # the latter in models without keypoints
        if not unused and not name.startswith(_SHARED_HEAD):
            plain[name] = tensor
    return to_native(merge_adapters(plain), TABLE)


def to_rfdetr(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace our names by RF-DETR's (for models with `lite_refpoint_refine`, as all published ones)."""
    renamed = to_foreign(weights, _BACK)
    if _ACTIVE not in renamed:
        return {**renamed, _ACTIVE: torch.zeros(0, 0, dtype=torch.bool)}
    counts = renamed[_ACTIVE].sum(1).tolist()
    return {**renamed, _BLOCKED: blocked_pairs(counts)}
