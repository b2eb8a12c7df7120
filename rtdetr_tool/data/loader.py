"""The data loader: torch's, with errors that read well and workers that do not fight over cores."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from rtdetr_tool.data.collate import FailedImage
from rtdetr_tool.errors import DataError, RtdetrError
from rtdetr_tool.ops.structures import Batch


class DetectionLoader(DataLoader):
    """Yields `Batch`; raises the `DataError` of a failed image here, in the main process.

    Iteration begins when the first batch is asked for and not before: Lightning makes an iterator ahead of telling the
    sampler the epoch when it resumes, and torch's own would by then have drawn samples of the wrong epoch.
    """

    def __iter__(self) -> Iterator[Batch]:
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                raise self._explained(error) from error
            if isinstance(batch, FailedImage):
                raise DataError(batch.message)
            yield batch

    def _explained(self, error: RuntimeError) -> Exception:
        if not re.search(r"DataLoader worker .*(killed by signal|exited unexpectedly)", str(error)):
            return error
        return RtdetrError(
            f"A data worker process died ({str(error).strip().splitlines()[0]}). Where the system did it, the memory of "
            f"the machine or of the container (/dev/shm) was used up: lower dataset.workers (now {self.num_workers}) or "
            "dataset.batch_size. The same command goes on from the last checkpoint."
        )


def start_worker(worker_id: int) -> None:
    """One thread per worker process: the processes are the parallelism."""
    torch.set_num_threads(1)
