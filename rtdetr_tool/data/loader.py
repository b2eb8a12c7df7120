"""The data loader: torch's, with errors that read well and workers that do not fight over cores."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

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
        for batch in super().__iter__():
            if isinstance(batch, FailedImage):
                raise DataError(batch.message)
            yield batch


def start_worker(worker_id: int) -> None:
    """One thread per worker process: the processes are the parallelism."""
    torch.set_num_threads(1)


_DEAD_WORKER = re.compile(r"DataLoader worker .*?(killed by signal|exited unexpectedly)[^.\n]*")


@contextmanager
def dead_worker_explained(settings: str) -> Iterator[None]:
    """Turn torch's error about a worker process that died into ours: `settings` are what to lower, with their values.

    Torch raises it wherever the program is: others may have wrapped it there.
    """
    try:
        yield
    except RuntimeError as error:
        found: BaseException | None = error
        while found is not None and not (said := _DEAD_WORKER.search(str(found))):
            found = found.__cause__ or found.__context__
        if found is None:
            raise
        raise RtdetrError(
            f"A data worker process died ({said[0]}). If the system killed it, the memory of the machine or container "
            f"(or its /dev/shm) was used up: lower {settings}. If it died of a file, dataset.workers=0 shows which."
        ) from error
