"""Tables that rename weights of DINOv2 (Oquab et al. 2023, arXiv:2304.07193) to those of our `WindowedDinov2`.

Hugging Face transformers, timm and the original repository (facebookresearch/dinov2) publish the same weights under
different names; those of the last two are nearly the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rtdetr_tool.checkpoints.renames import Table, to_native
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.messages import first_of

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
        (f"{_BLOCK[0]}{foreign}", f"{_BLOCK[1]}{native}")
        for foreign, native in (
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
# timm's and the original repository's names -> ours, after the joint projections are split.
TIMM: Table = (
    ("cls_token", "cls_token"),
    ("mask_token", "mask_token"),
    ("reg_token", "registers"),
    ("register_tokens", "registers"),
    ("pos_embed", "position"),
    ("patch_embed.proj.", "patch_embed."),
    ("norm.", "norm."),
    *(
        (f"blocks.*.{foreign}", f"blocks.*.{native}")
        for foreign, native in (
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
    """Weights of DINOv2 from transformers, timm or the original repository under our names.

    Raises:
        CheckpointError: the tensors are those of another network.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        if not name.startswith(_CLASSIFIERS):
            plain[name] = tensor
    if "embeddings.cls_token" in plain:
        return to_native(plain, TRANSFORMERS)
    if "pos_embed" in plain and "patch_embed.proj.weight" in plain:
        return _with_class_position(to_native(split_projections(plain), TIMM))
    raise CheckpointError(
        f"found the tensors {first_of(state_dict, 3)}; expected those of DINOv2 from transformers, timm or Meta"
    )


def split_projections(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace each joint projection by one each for query, key and value."""
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
    """Add a position embedding of zero for the class token, which timm's variant with registers adds to the token."""
    position = weights["position"]
    if math.isqrt(position.shape[1]) ** 2 == position.shape[1]:
        weights["position"] = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
    return weights
