"""How often training images are drawn: repeat factors of rare classes, and shares of sources."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.data.sampling import SourceShares, epoch_length, repeat_factors
from rtdetr_tool.data.source import Source

logger = logging.getLogger(__name__)


def draw_factors(records: Sequence[ImageRecord], threshold: float | None) -> NDArray[np.float64] | None:
    """How often each image is drawn per epoch; None = once."""
    if threshold is None or not records:
        return None
    factors = repeat_factors((record.labels[~record.iscrowd] for record in records), threshold)
    repeated = int((factors > 1).sum())
    logger.info(
        "Repeating images with rare classes: %d of %d images, at most %.1f times; an epoch has %d images",
        repeated, len(factors), factors.max(), epoch_length(factors),
    )  # fmt: skip
    return factors if repeated else None


def source_shares(sources: Sequence[Source], weights: Sequence[float] | None) -> SourceShares | None:
    """The shares of the sources in each batch; None = by their numbers of images."""
    if weights is None or len(sources) == 1:
        return None
    shares = SourceShares(tuple(len(source.images) for source in sources), tuple(weights))
    lines = [
        f"{source.name} {share:.1%} ({len(source.images)} images)"
        for source, share in zip(sources, shares.fractions, strict=True)
    ]
    logger.info("Each training batch has images of %s", ", ".join(lines))
    return shares
