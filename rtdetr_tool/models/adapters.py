"""Add LoRA or DoRA adapters of peft to the attention layers of a backbone and freeze everything else in it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import nn

from rtdetr_tool.errors import UserError
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.ops.batch_norm import fix_batch_norms

_INSTALL = 'model.backbone_lora requires peft: pip install "rtdetr-tool[lora]"'
# Names of the linear layers of attention in DINOv2, FAN and timm's networks: query, key and value, separate or joint.
ATTENTION_LAYERS = (
    "query", "key", "value", "q", "k", "v", "q_proj", "k_proj", "v_proj", "qkv", "kv", "qk", "qv",
)  # fmt: skip


def check_peft() -> None:
    """UserError if peft is not installed."""
    if any(find_spec(name) is None for name in ("peft", "accelerate", "transformers")):
        raise UserError(_INSTALL)


def add_adapters(
    detector: Detector, rank: int, alpha: float, dora: bool, modules: Sequence[str] | None, frozen: Sequence[str] = ()
) -> list[str]:
    """Add an adapter to each linear layer of the backbone with one of the names in `modules`.

    The rest of the backbone is frozen, batch norms included, except for layers that are not in published files. Returns
    the dotted names of the layers, below `backbone`.

    Args:
        modules: last parts of names; None = the layers of attention.
        frozen: dotted names of modules that do not get adapters.

    Raises:
        UserError: peft is missing, or the backbone has no such layers.
    """
    check_peft()
    backbone = detector.backbone
    layers = _layers_in_use(detector, set(ATTENTION_LAYERS if modules is None else modules))
    below = tuple(f"{name}." for name in frozen)
    layers = [n for n in layers if backbone.is_published(n) and not f"backbone.{n}.".startswith(below)]
    if not layers:
        missing = "no linear attention layers" if modules is None else f"no linear layers named {', '.join(modules)}"
        raise UserError(
            f"model.backbone_lora is not supported with this backbone, which has {missing} in its forward pass; use a "
            "backbone with attention, such as a ViT, or train.freeze"
        )
    from peft import LoraConfig, inject_adapter_in_model

    targets = [name.removeprefix(f"{backbone.published_name}.") for name in layers]
    config = LoraConfig(r=rank, lora_alpha=alpha, use_dora=dora, target_modules=targets)  # type: ignore[arg-type]  # a list is accepted
    inject_adapter_in_model(config, backbone.published)
    fix_batch_norms(backbone.published)
    detector.train(detector.training)
    return layers


@torch.no_grad()
def _layers_in_use(detector: Detector, names: set[str]) -> list[str]:
    """The linear layers with one of these last names whose `forward` runs, below `backbone`.

    Some networks only read the weight of such a layer, which bypasses an adapter, and some have layers without use.
    """
    backbone = detector.backbone
    called: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in names
    ]
    training, side = backbone.training, 2 * detector.size_multiple
    try:
        backbone.eval()(torch.zeros(1, backbone.num_channels, side, side, device=next(backbone.parameters()).device))
    finally:
        backbone.train(training)
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(called))
