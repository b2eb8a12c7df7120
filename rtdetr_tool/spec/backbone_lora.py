"""The `model.backbone_lora` section: train adapters of the backbone instead of its weights."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_tool.spec.fields import INF, field


@dataclass(frozen=True)
class BackboneLoraSpec:
    """Low-rank adapters (LoRA, DoRA) in the attention layers of the backbone."""

    enabled: bool = field(
        False,
        "Freeze the backbone and train a low-rank adapter of each of its attention layers instead; "
        '`pip install "rtdetr-tool[lora]"`. Checkpoints have the adapters, which are merged into the weights whenever '
        "a detector is loaded for anything but resuming.",
        origin="ours",
        parameter_groups=True,
    )
    rank: int = field(16, "Rank of the adapters.", min=1, max=1024, origin="ours", parameter_groups=True)
    alpha: float = field(
        16.0,
        "The output of an adapter is multiplied by alpha / rank.",
        above=0.0,
        max=INF,
        origin="ours",
        parameter_groups=True,
        unlimited=True,
    )
    dora: bool = field(
        True,
        "DoRA, as in RF-DETR: also train the length of each row of the weights; false = LoRA.",
        origin="ours",
        parameter_groups=True,
    )
    modules: list[str] | None = field(
        None,
        "Last parts of the names of the linear layers to adapt, such as [qkv, proj]; null = query, key and value of "
        "attention.",
        origin="ours",
        parameter_groups=True,
    )
