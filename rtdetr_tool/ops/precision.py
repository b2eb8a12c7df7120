"""The precision in which boxes, locations and losses are computed."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32 if it has half precision; double precision stays, for comparisons without rounding."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
