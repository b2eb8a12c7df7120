"""The `model.toy` section."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rtdetr_tool.families.base import QUERY_COUNT
from rtdetr_tool.spec.fields import field

VARIANTS = {"small": 16, "large": 32}  # name -> hidden_dim


@dataclass(frozen=True)
class ToySpec:
    """Architecture and loss of the toy."""

    variant: str = field("small", "Which toy.", options=tuple(VARIANTS), origin="ours", architecture=True)
    backbone: str = field("timm/test_resnet", "Name of the backbone.", origin="ours", architecture=True)
    return_interm_indices: list[int] = field([3], "Stages to use.", origin="ours", architecture=True)
    feat_strides: list[int] = field([32], "Strides of these stages.", origin="ours", architecture=True)
    drop_path: float | None = field(None, "Stochastic depth of the backbone.", origin="ours")
    num_queries: int = field(8, "Object queries.", min=1, origin="ours", size="breadth", recorded=QUERY_COUNT)
    dec_layers: int = field(1, "Decoder layers.", min=1, origin="ours", architecture=True, size="depth")
    nheads: int = field(2, "Attention heads.", min=1, origin="ours", architecture=True, in_weights=False)
    cls_loss_coef: float = field(1.0, "Weight of the class loss.", min=0.0, origin="ours", unlimited=True)


def toy_problems(own: ToySpec, name: str) -> Iterator[str]:
    width = VARIANTS[own.variant]
    if width % own.nheads:
        yield f"{name}.nheads: {own.nheads} is invalid; expected a divisor of {width}"
