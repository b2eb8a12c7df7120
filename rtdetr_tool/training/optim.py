"""Parameter groups and optimizers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from rtdetr_tool.errors import SpecError
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.training.adamw import GroupedAdamW
from rtdetr_tool.training.torch_classes import create, optimizer_class

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def parameter_groups(
    detector: Detector,
    *,
    lr: float,
    lr_backbone: float,
    weight_decay: float,
    linear_proj_names: Sequence[str] = (),
    lr_linear_proj_mult: float = 1.0,
    lr_layer_decay: float = 1.0,
    lr_component_decay: float = 1.0,
    decay_vectors: bool = False,
    vectors: Collection[str] | None = None,
) -> list[dict[str, Any]]:
    """Assign every trainable parameter to exactly one named group.

    There is a learning rate per part (`backbone`, `linear_proj`, `decoder`, `main`), and each part is split by weight
    decay: norms, biases and other vectors (layer scales) have none. Norms are recognized by their class, not their
    name, so `input_proj.0.1` counts as one.

    Args:
        lr_layer_decay: gives each layer of the backbone a group of its own. The last one has `lr_backbone`, and each
            earlier one is slower by this factor (ELECTRA, Clark et al. 2020, arXiv:2003.10555).
        lr_component_decay: factor for the layers of the decoder and, squared, for the backbone, as in RF-DETR.
        decay_vectors: give the vectors weight decay as well, except for the backbone's biases, norms and embeddings.
        vectors: names of one-dimensional parameters, needed if the detector is sharded and all of them are flat.
    """
    if vectors is None:
        vectors = vector_names(detector)
    decoder = () if lr_component_decay == 1 else detector.decoder_layers
    layers = {} if lr_layer_decay == 1 else detector.backbone.layer_numbers()
    last = max(layers.values(), default=0)
    rates = {
        "backbone": lr_backbone * lr_component_decay**2,
        "linear_proj": lr * lr_linear_proj_mult,
        "decoder": lr * lr_component_decay,
        "decoder_linear_proj": lr * lr_linear_proj_mult * lr_component_decay,
        "main": lr,
    }
    undecayed = {id(p) for module in detector.modules() if _is_norm(module) for p in module.parameters(recurse=False)}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in detector.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, _, inner = name.partition(".")
        depth = last
        if layer == "backbone" and detector.backbone.is_published(inner):
            kind, depth = "backbone", layers.get(inner, last)
        elif any(part in name for part in linear_proj_names):
            kind = "decoder_linear_proj" if name.startswith(decoder) else "linear_proj"
        elif name.startswith(decoder):
            kind = "decoder"
        else:
            kind = "main"
        is_bias_or_norm = name.endswith(".bias") or id(parameter) in undecayed
        if not decay_vectors:
            decays = name not in vectors and not is_bias_or_norm
        elif kind == "backbone":
            decays = not is_bias_or_norm and inner not in detector.backbone.embedding_names()
        else:
            decays = True
        key = kind if kind != "backbone" or not layers else f"{kind}_{depth:03d}"
        key = key if decays else f"{key}_no_decay"
        if key not in groups:
            rate, decay = rates[kind] * lr_layer_decay ** (last - depth), weight_decay if decays else 0.0
            groups[key] = {"name": key, "lr": rate, "weight_decay": decay, "params": []}
        groups[key]["params"].append(parameter)
    return list(groups.values())


def vector_names(detector: nn.Module) -> frozenset[str]:
    """The names of parameters with at most one dimension."""
    return frozenset(name for name, parameter in detector.named_parameters() if parameter.ndim < 2)


def build_optimizer(
    name: str,
    groups: Iterable[dict[str, Any]],
    *,
    momentum: float,
    fused: bool = True,
    keywords: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """AdamW (`momentum` is its first beta), SGD with momentum, or another optimizer of torch by its dotted name.

    The fused kernels do the same arithmetic in one pass (three times faster on a CPU). They unscale gradients
    themselves, so they do not work with fp16 loss scaling combined with gradient clipping. Without them torch chooses:
    on a GPU a few kernels for all weights (with `fused=False` it would loop over them).
    """
    groups = list(groups)
    if not groups:
        raise SpecError("Nothing to train: train.freeze and model.train_backbone freeze all weights")
    kind: type[torch.optim.Optimizer]
    defaults: dict[str, Any] = {}
    if name == "AdamW":
        kind, defaults = GroupedAdamW, {"betas": (momentum, 0.999), "fused": fused or None}
    elif name == "SGD":
        kind, defaults = torch.optim.SGD, {"lr": groups[0]["lr"], "momentum": momentum, "fused": fused or None}
    else:
        kind = optimizer_class(name)
    optimizer: torch.optim.Optimizer = create("optimizer_kwargs", kind, groups, {**defaults, **(keywords or {})})
    return optimizer


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) or ("norm" in type(module).__name__.lower() and not list(module.children()))
