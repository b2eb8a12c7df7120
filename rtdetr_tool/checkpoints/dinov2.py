"""Weights of DINOv2 (Oquab et al. 2023, arXiv:2304.07193) by the names of our `WindowedDinov2`.

Three programs publish the same weights under names of their own: Hugging Face transformers, timm, and the original
repository (facebookresearch/dinov2), whose names are nearly timm's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rtdetr_tool.checkpoints.renames import Table, to_ours
from rtdetr_tool.errors import CheckpointError

_BLOCK = ("encoder.layer.*.", "blocks.*.")
# Hugging Face's names -> ours.
TRANSFORMERS: Table = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.mask_token", "mask_token"),
    ("embeddings.register_tokens", "registers"),
    ("embeddings.position_embeddings", "position"),
    ("embeddings.patch_embeddings.projection.", "patch_embed."),
    ("layernorm.", "norm."),
    *(
        (f"{_BLOCK[0]}{theirs}", f"{_BLOCK[1]}{ours}")
        for theirs, ours in (
            ("attention.output.dense.", "attention.output."),
            ("attention.attention.", "attention."),
            ("attention.q_proj.", "attention.query."),  # these four since transformers 5
            ("attention.k_proj.", "attention.key."),
            ("attention.v_proj.", "attention.value."),
            ("attention.o_proj.", "attention.output."),
            ("layer_scale1.lambda1", "scale1"),
            ("layer_scale2.lambda1", "scale2"),
            ("norm1.", "norm1."),
            ("norm2.", "norm2."),
            ("mlp.", ""),
        )
    ),
)
# timm's and the original repository's names -> ours, once the joint projections are taken apart.
TIMM: Table = (
    ("cls_token", "cls_token"),
    ("mask_token", "mask_token"),
    ("reg_token", "registers"),
    ("register_tokens", "registers"),
    ("pos_embed", "position"),
    ("patch_embed.proj.", "patch_embed."),
    ("norm.", "norm."),
    *(
        (f"blocks.*.{theirs}", f"blocks.*.{ours}")
        for theirs, ours in (
            ("attn.proj.", "attention.output."),
            ("attn.", "attention."),
            ("ls1.gamma", "scale1"),
            ("ls2.gamma", "scale2"),
            ("norm1.", "norm1."),
            ("norm2.", "norm2."),
            ("mlp.", ""),
        )
    ),
)
_PREFIXES = ("module.", "dinov2.", "dinov2_with_registers.", "backbone.", "model.")
_CLASSIFIERS = ("classifier.", "head.")


def from_dinov2(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our backbone's names for DINOv2's weights as transformers, timm or the original repository have them.

    Raises:
        CheckpointError: when the tensors are another network's.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        if not name.startswith(_CLASSIFIERS):
            plain[name] = tensor
    if "embeddings.cls_token" in plain:
        return to_ours(plain, TRANSFORMERS)
    if "pos_embed" in plain and "patch_embed.proj.weight" in plain:
        return _with_class_position(to_ours(_apart(plain), TIMM))
    found = ", ".join(list(state_dict)[:3])
    raise CheckpointError(f"its tensors are not those of a DINOv2 of transformers, timm or Meta (found: {found})")


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One projection each for query, key and value in place of the joint one."""
    result: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        start, joint, end = name.partition("attn.qkv.")
        if joint:
            parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            result |= {f"{start}attn.{part}.{end}": value for part, value in parts}
        else:
            result[name] = tensor
    return result


def _with_class_position(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's variant with registers has the class token's position inside the class token."""
    position = weights["position"]
    if math.isqrt(position.shape[1]) ** 2 == position.shape[1]:
        weights["position"] = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
    return weights
