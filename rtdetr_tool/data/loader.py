"""The data loader: torch's, with errors that read well and workers that do not fight over cores."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from typing import Any

import torch
from torch.utils.data import DataLoader

from rtdetr_tool.data.collate import FailedImage
from rtdetr_tool.data.faults import kind_of, machine_error
from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.ops.structures import Batch


class DetectionLoader(DataLoader):
    """Yields `Batch`; raises the error of a failed image here, in the main process.

    Iteration begins when the first batch is asked for and not before: Lightning makes an iterator ahead of telling the
    sampler the epoch when it resumes, and torch's own would by then have drawn samples of the wrong epoch.
    """

    def __iter__(self) -> Iterator[Batch]:
        for batch in loader_faults_explained(self, super().__iter__):
            if isinstance(batch, FailedImage):
                raise batch.error
            yield batch


def start_worker(worker_id: int) -> None:
    """One thread per worker process: the processes are the parallelism.

    A batch that cannot be sent ends the worker: torch would only print why, and the main process would wait forever.
    """
    torch.set_num_threads(1)
    Queue._on_queue_feeder_error = staticmethod(_end_worker)


_CANNOT_SEND = 71  # exit code of a worker; EX_OSERR of sysexits.h
# In messages of torch, where a process has no file descriptor left for the memory of a batch.
_LACKING_FILES = ("Too many open files", "items of ancdata", f"exit code {_CANNOT_SEND}.")


def _end_worker(error: Exception, batch: object) -> None:
    os._exit(_CANNOT_SEND if kind_of(error) else 1)


def loader_faults_explained(loader: DataLoader, start: Callable[[], Iterator[Any]] | None = None) -> Iterator[Any]:
    """What a loader yields; `MachineError` where its processes cannot be started or cannot send their batches."""
    iterator = None
    try:
        iterator = (start or loader.__iter__)()
        yield from iterator
    except (OSError, RuntimeError) as error:
        codes = [worker.exitcode for worker in getattr(iterator, "_workers", ())]
        lacking = any(sign in str(error) for sign in _LACKING_FILES) or _CANNOT_SEND in codes
        kind = "files" if lacking else kind_of(error)
        if kind is None:
            raise
        reason = "too many open files" if kind == "files" else error
        raise machine_error(kind, "The output of the data workers", reason) from error

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
