"""The data loader: torch's, with errors that read well and workers that do not fight over cores."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from rtdetr_tool.data.collate import FailedImage
from rtdetr_tool.errors import DataError
from rtdetr_tool.ops.structures import Batch


class DetectionLoader(DataLoader):
    """Yields `Batch`; raises the `DataError` of a failed image here, in the main process.

    Iteration begins when the first batch is asked for and not before: Lightning makes an iterator ahead of telling the
    sampler the epoch when it resumes, and torch's own would by then have drawn samples of the wrong epoch.
    """

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            if isinstance(batch, FailedImage):
                raise DataError(batch.message)
            yield batch


def start_worker(worker_id: int) -> None:
    """One thread per worker process: the processes are the parallelism."""
    torch.set_num_threads(1)
