"""Collate samples into a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from rtdetr_tool.errors import DataError, MachineError
from rtdetr_tool.ops.structures import Batch, Target


@dataclass
class FailedImage:
    """Placeholder for an image that could not be read; `error` contains the file and the reason.

    Worker processes return errors in this form, because torch would wrap exceptions in the worker's traceback.
    """

    path: str
    error: DataError | MachineError

    @property
    def message(self) -> str:
        return str(self.error)

    @property
    def ends_the_run(self) -> bool:
        """Whether it is a machine fault, so that all other images would fail too."""
        return isinstance(self.error, MachineError)


@dataclass
class InferenceBatch(Batch):
    """A batch and the images that failed; the batch may be empty ([0, C, H, W])."""

    failures: list[FailedImage] = field(default_factory=list)


def collate(samples: Sequence[tuple[Tensor, Target] | FailedImage]) -> Batch | FailedImage:
    """A batch, or the first failure among the samples, which the loader raises in the main process."""
    for sample in samples:
        if isinstance(sample, FailedImage):
            return sample
    images, targets = zip(*samples, strict=True)
    return Batch(stack_images(images), list(targets))


def collate_inference(
    samples: Sequence[tuple[Tensor, Target] | FailedImage], shape: tuple[int, int, int]
) -> InferenceBatch | FailedImage:
    """A batch of the readable images, and the failures; `shape` [C, H, W] is that of the images of an empty batch.

    A machine fault is returned alone, and the loader raises it.
    """
    for sample in samples:
        if isinstance(sample, FailedImage) and sample.ends_the_run:
            return sample
    good = [sample for sample in samples if not isinstance(sample, FailedImage)]
    images = stack_images([image for image, _ in good]) if good else torch.zeros((0, *shape), dtype=torch.uint8)
    failures = [sample for sample in samples if isinstance(sample, FailedImage)]
    return InferenceBatch(images, [target for _, target in good], failures)


def stack_images(images: Sequence[Tensor]) -> Tensor:
    """uint8 [C, H, W] each -> [B, C, H, W] in channels_last, the layout of decoders and of the network's convolutions.

    In a worker process the batch is made in shared memory, from which the main process reads it without another copy.
    """
    channels, height, width = images[0].shape
    shape = (len(images), height, width, channels)
    if get_worker_info() is None:
        batch = torch.empty(shape, dtype=torch.uint8)
    else:
        storage = torch.UntypedStorage._new_shared(len(images) * height * width * channels, device="cpu")
        strides = (height * width * channels, width * channels, channels, 1)
        batch = torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape, strides)
    for row, image in zip(batch, images, strict=True):
        row.copy_(image.permute(1, 2, 0))
    return batch.permute(0, 3, 1, 2)
