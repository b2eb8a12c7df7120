"""Range of the values of a tensor, and their rounding errors in FP16."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

LARGEST = 65504.0  # of FP16
SMALLEST_NORMAL = 2.0**-14  # full resolution down to here; no values between 0 and 2^-24


@dataclass
class TensorRange:
    """Magnitudes of a tensor over all images; the first five figures are of finite values only."""

    max_abs: float = 0.0
    smallest: float = float("inf")  # smallest nonzero magnitude
    values: int = 0
    flushed: int = 0  # not zero, but zero in FP16
    squares: float = 0.0
    error_squares: float = 0.0  # of rounding to FP16, without overflow
    non_finite: int = 0  # infinite or NaN in FP32 already

    def add(self, value: np.ndarray) -> None:
        given = torch.from_numpy(np.array(value, np.float32)).flatten()
        magnitude = given.abs()
        finite = torch.isfinite(magnitude)
        if not finite.all():
            self.non_finite += int((~finite).sum())
            magnitude = magnitude[finite]
        if not magnitude.numel():
            return
        self.values += magnitude.numel()
        self.max_abs = max(self.max_abs, float(magnitude.max()))
        self.smallest = min(self.smallest, float(magnitude.masked_fill(magnitude == 0, torch.inf).min()))
        if self.max_abs > LARGEST:
            magnitude = magnitude.clamp(max=LARGEST)
        rounded = magnitude.half().float()
        self.flushed += int(torch.count_nonzero(magnitude)) - int(torch.count_nonzero(rounded))
        self.squares += float(torch.linalg.vector_norm(magnitude)) ** 2
        self.error_squares += float(torch.linalg.vector_norm(rounded.sub_(magnitude))) ** 2

    def merge(self, other: TensorRange) -> None:
        self.max_abs = max(self.max_abs, other.max_abs)
        self.smallest = min(self.smallest, other.smallest)
        for name in ("values", "flushed", "squares", "error_squares", "non_finite"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def flushed_share(self) -> float:
        return self.flushed / self.values if self.values else 0.0

    @property
    def half_error(self) -> float:
        """Relative error (L2) of the tensor in FP16."""
        return (self.error_squares / self.squares) ** 0.5 if self.squares else 0.0
