"""TF32, in which GPUs since Ampere compute float32 convolutions and matrix products with 10 bits of mantissa."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

MODES = ("auto", "on", "off")


def set_tf32(mode: str, mixed_precision: bool) -> None:
    """Set what this process computes in TF32 (`train.tf32`).

    auto: convolutions, which is torch's own default, and in mixed precision the products that stay in float32.
    """
    products = mode == "on" or (mode == "auto" and mixed_precision)
    torch.set_float32_matmul_precision("high" if products else "highest")
    torch.backends.cudnn.allow_tf32 = mode != "off"


@contextmanager
def exact_float32() -> Iterator[None]:
    """Disable TF32 inside the block, because comparisons with other programs would measure it."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    set_tf32("off", mixed_precision=False)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
