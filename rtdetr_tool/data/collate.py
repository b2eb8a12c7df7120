"""From samples to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rtdetr_tool.errors import DataError, MachineError
from rtdetr_tool.ops.structures import Batch, Target


@dataclass
class FailedImage:
    """Stands where an image could not be read; `error` names the file and what is wrong with it.

    Errors travel from worker processes in this form: torch's own way would wrap them in the worker's traceback.
    """

    path: str
    error: DataError | MachineError

    @property
    def message(self) -> str:
        return str(self.error)

    @property
    def ends_the_run(self) -> bool:
        """Whether the machine is at fault, so that all other images would fail alike."""
        return isinstance(self.error, MachineError)


@dataclass
class InferenceBatch(Batch):
    """A batch together with the images that should have been in it; it may be empty ([0, 3, H, W])."""

    failures: list[FailedImage] = field(default_factory=list)


def collate(samples: Sequence[tuple[Tensor, Target] | FailedImage]) -> Batch | FailedImage:
    """A batch, or the first failure among the samples (the loader raises it in the main process)."""
    for sample in samples:
        if isinstance(sample, FailedImage):
            return sample
    images, targets = zip(*samples, strict=True)
    return Batch(torch.stack(images), list(targets))


def collate_inference(
    samples: Sequence[tuple[Tensor, Target] | FailedImage], size: tuple[int, int]
) -> InferenceBatch | FailedImage:
    """A batch of what could be read, with the rest beside it; `size` is the (height, width) of an empty batch.

    A fault of the machine comes back alone, for the loader to raise.
    """
    for sample in samples:
        if isinstance(sample, FailedImage) and sample.ends_the_run:
            return sample
    good = [sample for sample in samples if not isinstance(sample, FailedImage)]
    images = torch.stack([image for image, _ in good]) if good else torch.zeros((0, 3, *size), dtype=torch.uint8)
    failures = [sample for sample in samples if isinstance(sample, FailedImage)]
    return InferenceBatch(images, [target for _, target in good], failures)
