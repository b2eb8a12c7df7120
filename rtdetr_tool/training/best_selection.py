"""Select the best epoch by its scores, or by a moving average of them as `smooth_alpha` in RF-DETR's package."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

RAW = "raw"  # the trained weights; averaged ones are smooth already


class SmoothedSelection:
    """Compares scores by kind of weights with the best one before.

    Args:
        smoothing: weight of the scores before in the moving average of the trained weights; it starts at 0.
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing
        self._average = 0.0
        self._best: float | None = None

    def smoothed(self, scores: Mapping[str, float]) -> dict[str, float]:
        """The scores of the next epoch, with the moving average instead of that of the trained weights."""
        if not self.smoothing or RAW not in scores:
            return dict(scores)
        self._average = self.smoothing * self._average + (1 - self.smoothing) * scores[RAW]
        return {**scores, RAW: self._average}

    def admits(self, score: float) -> bool:
        """Whether the score is better than all before it, of which it then is the best."""
        if self._best is not None and not score > self._best:
            return False
        self._best = score
        return True

    def state(self) -> dict[str, Any]:
        return {"average": self._average, "best": self._best}

    def restore(self, state: Mapping[str, Any]) -> None:
        average, best = state.get("average", 0.0), state.get("best")
        self._average = average if math.isfinite(average) else 0.0
        self._best = best
