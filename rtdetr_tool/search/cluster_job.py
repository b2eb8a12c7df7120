"""What a job of the cluster runs: a worker of the search as an ordinary `rtdetr automl` process.

Submitit starts it and, shortly before the time limit, sends SIGUSR2: the worker saves, and the job is requeued.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from rtdetr_tool.errors import Preempted

SPEC_VARIABLE = (
    "RTDETR_AUTOML_SPEC"  # the worker's spec as JSON: unlike a file in the results folder, it may have secrets
)
SECONDS_TO_SAVE = 60  # after a signal; submitit's signal comes 90 seconds before the time limit
_SECONDS_UNTIL_REQUEUED = 300  # of a job that SLURM preempts, after its worker has saved
# A worker is one process of its own, not a task of `srun`, which Lightning would take for a distributed run.
_TASK_VARIABLES = ("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP")


class ClusterJob:
    """The function that submitit stores and calls; it returns the worker's exit code."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    def __getstate__(self) -> dict[str, Any]:
        return {"_process": None, "_ended": False}

    def __call__(self) -> int:
        with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:  # readable by its owner only
            file.write(os.environ[SPEC_VARIABLE])
            file.flush()
            command = [sys.executable, "-m", "rtdetr_tool", "automl", "-e", file.name]
            signal.signal(signal.SIGTERM, lambda *_: self._end())
            self._process = subprocess.Popen(command, env=_environment(), preexec_fn=_ignore_submitit)
            if self._ended:  # before there was a process
                self._end()
            while (code := self._process.poll()) is None:  # not `wait`, which holds a lock that `checkpoint` needs
                time.sleep(0.2)
        if code == Preempted.exit_code and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            time.sleep(_SECONDS_UNTIL_REQUEUED)  # SLURM requeues only jobs that have not ended
        return code

    def checkpoint(self) -> Any:
        """Let the worker save, and return what the requeued job will run. Submitit calls it on SIGUSR2."""
        from submitit.helpers import DelayedSubmission

        self._end()
        deadline = time.monotonic() + SECONDS_TO_SAVE
        while self._runs() and time.monotonic() < deadline:
            time.sleep(0.2)
        return DelayedSubmission(ClusterJob())

    def _end(self) -> None:
        self._ended = True
        if self._process is not None and self._runs():
            os.kill(self._process.pid, signal.SIGTERM)

    def _runs(self) -> bool:
        if self._process is None:
            return False
        try:  # leaves the exit code to `poll`, which this may interrupt
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_TASK_VARIABLES)}
    kept.pop(SPEC_VARIABLE, None)
    return kept


def _ignore_submitit() -> None:
    """Ignore the signal before the time limit, which SLURM sends to all processes of the job."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
