"""Sampling points per level from the buffer with the share 1/n of each of a level's n points.

RT-DETRv2 and D-FINE have this buffer in each deformable attention of their files.
"""

from __future__ import annotations

from torch import Tensor


def points_from_shares(shares: Tensor) -> list[int]:
    """One number per level."""
    points, position = [], 0
    values = shares.flatten().tolist()
    while position < len(values):
        points.append(max(1, round(1 / values[position])))
        position += points[-1]
    return points
