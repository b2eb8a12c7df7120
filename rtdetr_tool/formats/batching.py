"""Run any number of images through a file that supports only some batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BatchLimits:
    """Smallest and largest batch of an engine; equal for a fixed batch size. `largest` None means no limit."""

    smallest: int = 1
    largest: int | None = None

    def __post_init__(self) -> None:
        if self.smallest < 1 or (self.largest is not None and self.largest < self.smallest):
            raise ValueError(f"batch sizes from {self.smallest} to {self.largest}")


def run_in_batches(
    images: Tensor, limits: BatchLimits, run: Callable[[Tensor], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The outputs of `run` for images [B, C, H, W], B >= 0; axis 0 of every output is the image.

    Larger batches are split; smaller ones are padded with black images, whose outputs are dropped.
    """
    largest = limits.largest or max(len(images), limits.smallest)
    chunks = images.split(largest) if len(images) else (images,)
    outputs_of_chunks = [_run_filled(chunk, limits.smallest, run) for chunk in chunks]
    if len(outputs_of_chunks) == 1:
        return outputs_of_chunks[0]
    return {name: torch.cat([outputs[name] for outputs in outputs_of_chunks]) for name in outputs_of_chunks[0]}


def _run_filled(images: Tensor, smallest: int, run: Callable[[Tensor], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    count = len(images)
    if count < smallest:
        images = torch.cat([images, images.new_zeros(smallest - count, *images.shape[1:])])
    return {name: output[:count] for name, output in run(images).items()}
