"""`train.precision` as Lightning and torch name it."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Precision(NamedTuple):
    """How a run computes."""

    lightning: str  # the Trainer's `precision`
    autocast: torch.dtype | None  # None: no autocast


MIXED_PRECISION: dict[str, Precision] = {
    "fp32": Precision("32-true", None),
    "fp16": Precision("16-mixed", torch.float16),
    "bf16": Precision("bf16-mixed", torch.bfloat16),
}
