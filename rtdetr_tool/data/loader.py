"""The data loader: torch's, with clear errors and one thread per worker process."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader

from rtdetr_tool.data.collate import FailedImage
from rtdetr_tool.data.faults import kind_of, machine_error
from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.ops.structures import Batch

BatchT = TypeVar("BatchT", bound=Batch)


class DetectionLoader(DataLoader[Any], Generic[BatchT]):
    """Yields batches; raises errors of failed images in the main process.

    Iteration starts lazily with the first batch: when Lightning resumes, it creates the iterator before it sets the
    epoch of the sampler, and torch's iterator would already have drawn samples of the wrong epoch.
    """

    def __iter__(self) -> Iterator[BatchT]:  # type: ignore[override]  # a generator instead of torch's own class
        for batch in explain_loader_faults(self, super().__iter__):
            if isinstance(batch, FailedImage):
                raise batch.error
            yield batch


def start_worker(worker_id: int) -> None:
    """Initialize a worker process with a single thread, because parallelism comes from the processes.

    A batch that cannot be sent ends the worker; torch would only print the reason and the main process would hang.
    """
    torch.set_num_threads(1)
    Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]  # private


@contextmanager
def _objects_frozen() -> Iterator[None]:
    """Hide all objects that exist now from the garbage collector of processes that are forked meanwhile.

    It writes to every object that it looks at, so that each worker would get a copy of nearly all memory.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


_CANNOT_SEND = 71  # exit code of a worker; EX_OSERR of sysexits.h
# In messages of torch when no file descriptor is left for the shared memory of a batch.
_TOO_MANY_FILES = ("Too many open files", "items of ancdata", f"exit code {_CANNOT_SEND}.")


def _end_worker(error: Exception, batch: object) -> None:
    os._exit(_CANNOT_SEND if kind_of(error) else 1)


def explain_loader_faults(loader: DataLoader[Any], start: Callable[[], Iterator[Any]] | None = None) -> Iterator[Any]:
    """Iterate over a loader; `MachineError` if its workers cannot be started or cannot send their batches."""
    iterator = None
    try:
        with _objects_frozen():
            iterator = (start or loader.__iter__)()
        yield from iterator
    except (OSError, RuntimeError) as error:
        codes = [worker.exitcode for worker in getattr(iterator, "_workers", ())]
        too_many_files = any(text in str(error) for text in _TOO_MANY_FILES) or _CANNOT_SEND in codes
        kind = "files" if too_many_files else kind_of(error)
        if kind is None:
            raise
        reason = "too many open files" if kind == "files" else error
        raise machine_error(kind, "The output of the data workers", reason) from error


_DEAD_WORKER = re.compile(r"DataLoader worker .*?(killed by signal|exited unexpectedly)[^.\n]*")


@contextmanager
def explain_dead_worker(settings: str) -> Iterator[None]:
    """Replace torch's error about a dead worker process; `settings` are the fields to lower, with their values.

    Torch raises it at any point of the program, so that it may be wrapped in other exceptions.
    """
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not (match := _DEAD_WORKER.search(str(cause))):
            cause = cause.__cause__ or cause.__context__
        if cause is None or match is None:
            raise
        raise RtdetrError(
            f"A data worker process died ({match[0]}). If the system killed it, the machine or container ran out of "
            f"memory (or of /dev/shm); lower {settings}. If a file caused it, dataset.workers=0 shows which one."
        ) from error
