"""Processes that run trials: each has one end of a pipe, over which it gets jobs and reports scores and outcomes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from rtdetr_tool.errors import Preempted
from rtdetr_tool.messages import first_line
from rtdetr_tool.redaction import mask_secrets, remember_secrets
from rtdetr_tool.search.trial import Job, Outcome, SearchStopped, TrainingSession, run_trial

_SECONDS_TO_SAVE = 300  # after SIGTERM, before a process is killed


@dataclass(frozen=True)
class Score:
    """The score of a validation; the process waits for the answer whether to end the trial."""

    validation: int
    value: float
    last: bool


@dataclass(frozen=True)
class Stopped:
    """The process cannot run any trial; `reason` without secrets."""

    reason: str


class Worker:
    """A process that runs one trial after another. It ends, after saving, when this process does."""

    def __init__(self, session: TrainingSession, threads: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_main, args=(other, session, threads), name="rtdetr-trial")
        self.process.start()
        other.close()
        self.job: Job | None = None

    def start(self, job: Job) -> None:
        self.job = job
        self.connection.send(job)

    def receive(self) -> Score | Outcome | Stopped | None:
        """The next message; None if the process has ended."""
        try:
            message: Score | Outcome | Stopped = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return None
        return message

    @property
    def end(self) -> str:
        """How the process ended."""
        code = self.process.exitcode or 0
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def stop(workers: list[Worker]) -> None:
    """End processes as the system would, so that they save what they train."""
    for worker in workers:
        worker.connection.close()
        if worker.process.is_alive():
            worker.process.terminate()
    for worker in workers:
        worker.process.join(_SECONDS_TO_SAVE)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def ready(workers: list[Worker]) -> list[Worker]:
    """Wait for messages; the processes that sent one, or that ended."""
    readable = wait([worker.connection for worker in workers])
    return [worker for worker in workers if worker.connection in readable]


def _main(connection: Connection, session: TrainingSession, threads: int | None) -> None:
    """The process: run jobs until the pipe is closed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    _silence()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)

    def report(validation: int, value: float, last: bool) -> bool:
        connection.send(Score(validation, value, last))
        return bool(connection.recv())

    while True:
        try:
            job: Job = connection.recv()
        except (EOFError, OSError):
            return
        remember_secrets(job.loaded.explicit)
        try:
            connection.send(run_trial(job, session, report))
        except Preempted:
            sys.exit(Preempted.exit_code)
        except SearchStopped as error:
            connection.send(Stopped(mask_secrets(str(error))))
        except (EOFError, OSError):  # the search has ended
            return
        except Exception as error:
            name = type(error).__name__
            connection.send(Outcome(reason=mask_secrets(f"{name}: {first_line(error)}")))


def _end_with(sentinel: Any) -> None:
    """End this process like a scheduler would when its parent, the search, was killed."""
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _silence() -> None:
    """Drop the console output; each trial has a log file."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
