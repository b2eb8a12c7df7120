"""Tables that rename weights of DINOv3 (Siméoni et al. 2025, arXiv:2508.10104) to timm's names, which are ours.

The published weights of the attention's biases are 0. timm's networks have none, so that adapters work on the joint
projection of query, key and value; other biases are an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from rtdetr_tool.checkpoints.renames import Table
from rtdetr_tool.errors import CheckpointError

_BLOCK = ("layer.*.", "blocks.*.")
# Names of Hugging Face transformers after `join_projections`.
TRANSFORMERS_VIT: Table = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.register_tokens", "reg_token"),
    ("embeddings.patch_embeddings.", "patch_embed.proj."),
    ("norm.", "norm."),
    *(
        (f"{_BLOCK[0]}{foreign}", f"{_BLOCK[1]}{native}")
        for foreign, native in (
            ("attention.qkv.", "attn.qkv."),
            ("attention.o_proj.", "attn.proj."),
            ("layer_scale1.lambda1", "gamma_1"),
            ("layer_scale2.lambda1", "gamma_2"),
            ("norm1.", "norm1."),
            ("norm2.", "norm2."),
            ("mlp.gated_proj.", "mlp.fc1_x."),
            ("mlp.gate_proj.", "mlp.fc1_g."),
            ("mlp.up_proj.", "mlp.fc1."),
            ("mlp.down_proj.", "mlp.fc2."),
        )
    ),
)
TRANSFORMERS_CONVNEXT: Table = (
    ("stages.0.downsample_layers.", "stem."),
    ("stages.*.downsample_layers.", "stages.*.downsample."),
    *(
        (f"stages.*.layers.*.{foreign}", f"stages.*.blocks.*.{native}")
        for foreign, native in (
            ("depthwise_conv.", "conv_dw."),
            ("layer_norm.", "norm."),
            ("pointwise_conv1.", "mlp.fc1."),
            ("pointwise_conv2.", "mlp.fc2."),
            ("gamma", "gamma"),
        )
    ),
)
# Names of the original repository (facebookresearch/dinov3) after `without_biases`.
META_VIT: Table = (
    ("cls_token", "cls_token"),
    ("storage_tokens", "reg_token"),
    ("patch_embed.", "patch_embed."),
    ("norm.", "norm."),
    ("blocks.*.ls1.gamma", "blocks.*.gamma_1"),
    ("blocks.*.ls2.gamma", "blocks.*.gamma_2"),
    ("blocks.*.mlp.w1.", "blocks.*.mlp.fc1_g."),
    ("blocks.*.mlp.w2.", "blocks.*.mlp.fc1_x."),
    ("blocks.*.mlp.w3.", "blocks.*.mlp.fc2."),
    ("blocks.*.", "blocks.*."),
)
# timm's names -> those of `WindowedDinov3`, after the joint projections are split.
WINDOWED: Table = (
    ("cls_token", "cls_token"),
    ("reg_token", "registers"),
    ("patch_embed.proj.", "patch_embed."),
    ("norm.", "norm."),
    *(
        (f"blocks.*.{timm}", f"blocks.*.{ours}")
        for timm, ours in (
            ("attn.proj.", "attention.output."),
            ("attn.", "attention."),
            ("gamma_1", "scale1"),
            ("gamma_2", "scale2"),
            ("norm1.", "norm1."),
            ("norm2.", "norm2."),
            ("mlp.fc1_g.", "gate."),
            ("mlp.fc1_x.", "fc1."),
            ("mlp.", ""),
        )
    ),
)
# Tensors that no feature map depends on, and tables that the network computes.
UNUSED_VIT = (r"(embeddings\.)?mask_token$", r"rope_embed\.", r"local_cls_norm\.", r".*\.bias_mask$")

_PROJECTION = re.compile(r"(.*\.attention\.)[qkv]_proj\.(weight|bias)$")


def join_projections(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One projection for query, key and value in each block; the linear layer next to a gate gets a name of its own.

    Raises:
        CheckpointError: a projection has a bias.
    """
    gated = any(".mlp.gate_proj." in name for name in weights)
    joined: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        match = _PROJECTION.match(name)
        if match is None:
            joined[name.replace(".mlp.up_proj.", ".mlp.gated_proj.") if gated else name] = tensor
        elif match[2] == "bias":
            _check_zero(name, tensor)
        else:
            names = [f"{match[1]}{part}_proj.weight" for part in "qkv"]
            if missing := [part for part in names if part not in weights]:
                raise CheckpointError(f"missing tensors {', '.join(missing)}")
            joined[f"{match[1]}qkv.weight"] = torch.cat([weights[part] for part in names])
    return joined


def without_biases(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without biases of query, key and value.

    Raises:
        CheckpointError: query or value has a bias. That of the key is masked.
    """
    kept: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.endswith(".attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            _check_zero(name, torch.cat([query, value]))
        else:
            kept[name] = tensor
    return kept


def _check_zero(name: str, bias: Tensor) -> None:
    if bias.count_nonzero():
        raise CheckpointError(f"{name} is not 0 everywhere, but DINOv3 as published has no biases in its attention")
