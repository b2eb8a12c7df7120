"""Samplers: which images each process sees, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class TrainSampler(Sampler[tuple[int, int]]):
    """A new shuffled order per epoch, the same on all ranks, distributed in turn; yields (epoch, index).

    Step k of all ranks together sees the same images as step k of a single process with a batch `world_size` times as
    large. All ranks get the same number of images: an incomplete last step is dropped, except that a dataset smaller
    than one step is used completely (with a few images repeated if it cannot be divided evenly).
    """

    def __init__(self, count: int, seed: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.count, self.seed, self.batch_size = count, seed, batch_size
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._start = (-1, 0)

    @property
    def full_steps(self) -> int:
        return self.count // (self.batch_size * self.world_size)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def start_at(self, epoch: int, batches: int) -> None:
        """Skip the first `batches` batches of this epoch, which a resumed run has already seen."""
        self._start = (epoch, batches)

    def __len__(self) -> int:
        return self.full_steps * self.batch_size or -(-self.count // self.world_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        order = np.resize(order, len(self) * self.world_size)  # truncates, or repeats from the start
        skipped = self._start[1] * self.batch_size if self._start[0] == self.epoch else 0
        return ((self.epoch, int(index)) for index in order[self.rank :: self.world_size][skipped:])


class EvalSampler(Sampler[int]):
    """Every image exactly once over all ranks, in order; ranks may differ by one image."""

    def __init__(self, count: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, count, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
