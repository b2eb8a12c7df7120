"""Which images a process sees, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class TrainSampler(Sampler[tuple[int, int]]):
    """A new order each epoch, the same on all ranks, dealt out like cards; yields (epoch, index).

    Step k of all ranks together sees the images that step k of one process with a batch `world_size` times as large
    would see. All ranks get equally many: what does not fill a step of all ranks is left for another epoch, except
    that a data set smaller than one such step is used whole (with a few images twice where it cannot be dealt evenly).
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
        """Leave the first `batches` batches of that one epoch out: a run that goes on has seen them."""
        self._start = (epoch, batches)

    def __len__(self) -> int:
        return self.full_steps * self.batch_size or -(-self.count // self.world_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        order = np.resize(order, len(self) * self.world_size)  # cuts, or repeats from the start
        seen = self._start[1] * self.batch_size if self._start[0] == self.epoch else 0
        return ((self.epoch, int(index)) for index in order[self.rank :: self.world_size][seen:])


class EvalSampler(Sampler[int]):
    """Every image exactly once over all ranks, in order; the ranks' shares may differ by one image."""

    def __init__(self, count: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, count, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
