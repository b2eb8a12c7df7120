"""LoRA and DoRA adapters in state dicts: merge them into the weights of their layers, without peft.

A linear layer `x` with an adapter of peft has the tensors `x.base_layer.weight` [out, in], `x.lora_A.default.weight`
[rank, in], `x.lora_B.default.weight` [out, rank] and, with DoRA, `x.lora_magnitude_vector.default.weight` [out].

- LoRA (Hu et al. 2021, arXiv:2106.09685): W + alpha / rank * B A
- DoRA (Liu et al. 2024, arXiv:2402.09353): the same, with each row scaled to the length in the magnitude vector
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from rtdetr_tool.errors import CheckpointError

DEFAULT_ALPHA = 16.0  # of the field, and in Roboflow's package, whose files do not record it
_ADAPTER = re.compile(r"(?P<layer>.+)\.lora_(?P<part>A|B|magnitude_vector)\.\w+(?:\.weight)?")
_BASE = ".base_layer."


def has_adapters(names: Iterable[str]) -> bool:
    """Whether tensors with these names include adapters."""
    return any(_ADAPTER.fullmatch(name) for name in names)


def alpha_of(meta: Any) -> float:
    """`model.backbone_lora.alpha` in a checkpoint's metadata, or the default."""
    place = meta.get("spec") if isinstance(meta, Mapping) else None
    for name in ("model", "backbone_lora"):
        place = place.get(name) if isinstance(place, Mapping) else None
    alpha = place.get("alpha") if isinstance(place, Mapping) else None
    return float(alpha) if isinstance(alpha, (int, float)) else DEFAULT_ALPHA


@torch.no_grad()
def merge_adapters(weights: Mapping[str, Tensor], alpha: float = DEFAULT_ALPHA) -> dict[str, Tensor]:
    """The weights of the same network without adapters; unchanged if there are none.

    Raises:
        CheckpointError: an adapter is incomplete or does not fit its layer.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if match := _ADAPTER.fullmatch(name):
            parts.setdefault(match["layer"], {})[match["part"]] = tensor
    merged = without_adapters(weights)
    for layer, adapter in parts.items():
        name = f"{layer}.weight"
        if name not in merged or not {"A", "B"} <= set(adapter):
            raise CheckpointError(f"the LoRA adapter of {layer} is incomplete; the file may be corrupted")
        merged[name] = _merged(layer, merged[name], adapter, alpha)
    return merged


def without_adapters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that are not part of an adapter, by their names in a network without adapters."""
    return {name.replace(_BASE, "."): tensor for name, tensor in tensors.items() if not _ADAPTER.fullmatch(name)}


@torch.no_grad()
def restart_adapters(tensors: Mapping[str, Tensor]) -> None:
    """Reset adapters to no effect after other weights were copied into their layers, in place."""
    for name, tensor in tensors.items():
        match = _ADAPTER.fullmatch(name)
        if match and match["part"] == "B":
            tensor.zero_()
        elif match and match["part"] == "magnitude_vector":
            tensor.copy_(torch.linalg.norm(tensors[f"{match['layer']}{_BASE}weight"], dim=1))


def _merged(layer: str, weight: Tensor, adapter: Mapping[str, Tensor], alpha: float) -> Tensor:
    down, up, magnitude = adapter["A"], adapter["B"], adapter.get("magnitude_vector")
    fits = weight.ndim == down.ndim == up.ndim == 2 and len(down) == up.shape[1] > 0
    if not fits or (len(up), down.shape[1]) != weight.shape or (magnitude is not None and len(magnitude) != len(up)):
        raise CheckpointError(f"the LoRA adapter of {layer} does not fit its layer; the file may be corrupted")
    merged = weight.float() + (alpha / len(down)) * (up.float() @ down.float())
    if magnitude is not None:
        merged = merged * (magnitude.float() / torch.linalg.norm(merged, dim=1))[:, None]
    return merged.to(weight.dtype)
