"""Jobs of a cluster through submitit: submit, see which ones exist, cancel."""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rtdetr_tool.errors import UserError
from rtdetr_tool.messages import first_line
from rtdetr_tool.redaction import mask_secrets
from rtdetr_tool.search.cluster_job import SECONDS_TO_SAVE, SPEC_VARIABLE, ClusterJob
from rtdetr_tool.spec.slurm import SlurmSpec

if TYPE_CHECKING:
    from submitit import Executor

logger = logging.getLogger(__name__)

_INSTALL = 'automl.slurm requires submitit: pip install "rtdetr-tool[slurm]"'


class Cluster(Protocol):
    """Where the workers of a search run. `folder` has submitit's files, among them the output of the jobs."""

    def submit(self, spec: str) -> str:
        """Start a worker with a spec in JSON; the id of its job."""

    def existing(self, ids: Collection[str]) -> set[str] | None:
        """Those that wait, run or are requeued; None if the scheduler does not answer."""

    def cancel(self, ids: Collection[str]) -> None:
        """End jobs with SIGTERM."""


def open_cluster(section: SlurmSpec, folder: Path, gpus: int) -> Cluster:
    """UserError if submitit or SLURM's commands are missing."""
    if importlib.util.find_spec("submitit") is None:
        raise UserError(_INSTALL)
    if section.cluster == "local":
        return _LocalProcesses(section, folder)
    missing = [name for name in ("sbatch", "srun", "squeue", "scancel") if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"automl.slurm.jobs: {section.jobs} requires SLURM, but this machine has no {missing[0]}. Run the command "
            "on a login node of the cluster, or set automl.slurm.jobs=null to search on this machine"
        )
    return _Slurm(section, folder, gpus)


def job_output(folder: Path, job: str) -> Path:
    return folder / f"{job}_0_log.err"


class _Slurm:
    def __init__(self, section: SlurmSpec, folder: Path, gpus: int) -> None:
        import submitit

        self._executor = submitit.SlurmExecutor(folder, max_num_timeout=1_000_000)
        optional: dict[str, Any] = {
            "partition": section.partition,
            "cpus_per_task": section.cpus,
            "mem": None if section.memory is None else f"{round(section.memory * 1024)}M",
            "gpus_per_node": gpus or None,
            "additional_parameters": section.options or None,
        }
        given = {name: value for name, value in optional.items() if value is not None}
        self._executor.update_parameters(job_name="rtdetr-automl", time=section.time, ntasks_per_node=1, **given)
        self._answered = True

    def submit(self, spec: str) -> str:
        return _submitted(self._executor, spec)

    def existing(self, ids: Collection[str]) -> set[str] | None:
        if not ids:
            return set()
        command = ["squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%i"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        except (subprocess.SubprocessError, OSError) as error:
            if self._answered:
                logger.warning("squeue failed (%s); trying again until SLURM answers", first_line(error))
            self._answered = False
            return None
        self._answered = True
        # A preempted job is COMPLETING, then PENDING again; squeue omits those that have ended.
        return set(ids) & set(answer.split())

    def cancel(self, ids: Collection[str]) -> None:
        if ids:
            subprocess.run(["scancel", *ids], capture_output=True, check=False)


class _LocalProcesses:
    def __init__(self, section: SlurmSpec, folder: Path) -> None:
        import submitit

        self._folder = folder
        self._executor = submitit.LocalExecutor(folder, max_num_timeout=1_000_000)
        self._executor.update_parameters(timeout_min=section.time, signal_delay_s=SECONDS_TO_SAVE + 30)

    def submit(self, spec: str) -> str:
        return _submitted(self._executor, spec)

    def existing(self, ids: Collection[str]) -> set[str] | None:
        return {job for job in ids if self._runs(job)}

    def cancel(self, ids: Collection[str]) -> None:
        for job in self.existing(ids) or ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job), signal.SIGTERM)

    def _runs(self, job: str) -> bool:
        """Whether the process exists and is the one that submitit started, not one that reused its id."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(int(job), os.WNOHANG)  # an ended child stays in the process table until then
        process = Path("/proc") / job
        try:
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            ended = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return False
        starting = arguments == [b""]  # while the system replaces the process by the new program
        return not ended and (starting or os.fsencode(self._folder) in arguments)


def _submitted(executor: Executor, spec: str) -> str:
    """Submit a job; the spec travels in its environment, since submitit's files stay in the results folder."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with _variable(SPEC_VARIABLE, spec):
            return str(executor.submit(ClusterJob()).job_id)
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        reason = mask_secrets(_reason(error))
        raise UserError(f"automl.slurm: the job was refused: {reason}. Check the fields of automl.slurm") from None


def _reason(error: BaseException) -> str:
    """The message of sbatch, or of the system."""
    lines = [line.strip() for line in str(error).splitlines() if "sbatch: error:" in line]
    return "; ".join(line.split("error:", 1)[1].strip() for line in lines) or first_line(error)


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def wait_until_ended(cluster: Cluster, ids: Collection[str], seconds: float) -> set[str]:
    """Wait until the jobs have ended; those that have not."""
    deadline = time.monotonic() + seconds
    while (left := cluster.existing(ids)) is None or left:
        if time.monotonic() > deadline:
            return set(ids) if left is None else left
        time.sleep(0.5)
    return set()
