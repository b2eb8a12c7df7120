"""Samplers: which images each process sees, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

_GOLDEN = (5**0.5 - 1) / 2  # multiples of it, modulo 1, are evenly spread


class SourceShares(NamedTuple):
    """The shares of data sources in a batch; the images of a source have consecutive indices."""

    sizes: tuple[int, ...]  # images of each source
    weights: tuple[float, ...]  # of each source; their sum may be any number

    @property
    def fractions(self) -> NDArray[np.float64]:
        weights: NDArray[np.float64] = np.array(self.weights, dtype=np.float64)
        return weights / float(weights.sum())


class TrainSampler(Sampler[tuple[int, int]]):
    """A new shuffled order per epoch, the same on all ranks, distributed in turn; yields (epoch, index).

    Step k of all ranks together sees the same images as step k of a single process with a batch `world_size` times as
    large. All ranks get the same number of images: an incomplete last step is dropped, except that a dataset smaller
    than one step is used completely (with a few images repeated if it cannot be divided evenly).

    Args:
        factors: [count] how often each image is drawn per epoch, at least 1. Each epoch rounds them up or down at
            random. Repetition r of an image has index i + r * count, so that it is augmented differently.
        sources: the shares of the sources in each batch of each rank, rounded up or down; over the batches of an epoch
            the rounding evens out. `factors` then apply within each source. The length of an epoch stays the same, so
            images of a source are drawn more or less than once.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        factors: NDArray[np.float64] | None = None,
        sources: SourceShares | None = None,
    ) -> None:
        self.images, self.factors, self.sources = count, factors, sources
        self.count = count if factors is None else epoch_length(factors)
        self.seed, self.batch_size = seed, batch_size
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
        order = self._order(np.random.default_rng([self.seed, self.epoch]))
        order = np.resize(order, len(self) * self.world_size)  # truncates, or repeats from the start
        skipped = self._start[1] * self.batch_size if self._start[0] == self.epoch else 0
        return ((self.epoch, int(index)) for index in order[self.rank :: self.world_size][skipped:])

    def _order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """`count` indices in random order."""
        if self.sources is not None:
            return self._order_by_source(self.sources, rng)
        if self.factors is None:
            return rng.permutation(self.count)
        return self._draw(0, self.images, self.count, rng)

    def _draw(self, first: int, images: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """`count` draws, in random order, of the images from index `first` on, in proportion to their factors."""
        order = rng.permutation(images)
        factors = np.ones(images) if self.factors is None else self.factors[first : first + images]
        # Systematic sampling: each image is drawn its share of `count` rounded up or down.
        shares = factors[order] * (count / factors.sum())
        ends = np.floor(np.cumsum(shares) + rng.random()).astype(np.int64)
        ends[-1] = count
        draws = np.diff(ends, prepend=0)
        repetition = np.arange(count) - np.repeat(ends - draws, draws)
        return rng.permutation(first + np.repeat(order, draws) + repetition * self.images)

    def _order_by_source(self, sources: SourceShares, rng: np.random.Generator) -> NDArray[np.int64]:
        """As many draws as all ranks need, with the shares of the sources in each batch of each rank."""
        total = len(self) * self.world_size
        step = self.batch_size * self.world_size if self.full_steps else total  # images of all ranks
        # Systematic sampling again: point j of a step is in the source whose interval of [0, step) contains j + offset.
        # Rank r has every world_size-th point, so its batch has the same shares.
        ends = np.cumsum(sources.fractions) * step
        ends[-1] = step
        offsets = (rng.random() + np.arange(total // step) * _GOLDEN) % 1
        source = np.searchsorted(ends, (np.arange(step) + offsets[:, None]).ravel(), side="right")
        order = np.empty(total, np.int64)
        first = 0
        for number, images in enumerate(sources.sizes):
            places = source == number
            order[places] = self._draw(first, images, int(places.sum()), rng)
            first += images
        return order


def repeat_factors(labels: Iterable[NDArray[np.int64]], threshold: float) -> NDArray[np.float64]:
    """Repeat factors of images for rare classes (Gupta et al. 2019, arXiv:1908.03195), [images].

    The factor of a class that occurs in the share f of the images is max(1, sqrt(threshold / f)), and that of an image
    the largest one of its classes.

    Args:
        labels: the class indices of the objects of each image.
    """
    present = [np.unique(of_image) for of_image in labels]
    counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *present]))
    factors = np.sqrt(threshold * len(present) / np.maximum(counts, 1)).clip(min=1)
    return np.array([factors[classes].max() if len(classes) else 1.0 for classes in present])


def epoch_length(factors: NDArray[np.float64]) -> int:
    """The number of images drawn per epoch."""
    return int(np.ceil(factors.sum() - 1e-6))


class EvalSampler(Sampler[int]):
    """Every image exactly once over all ranks, in order; ranks may differ by one image."""

    def __init__(self, count: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, count, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
