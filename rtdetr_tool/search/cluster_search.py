"""A search on a cluster: keep as many jobs as requested running until all trials have ended.

Each job is a worker with a results folder of its own (`worker_00`), and all share the storage of the trials. The
workers choose and run the trials; this process submits the jobs, replaces those that end early, and shows the progress.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtdetr_tool.errors import MachineError, UserError
from rtdetr_tool.files import parse_json, write_atomically
from rtdetr_tool.progress import Task
from rtdetr_tool.search.cluster import job_output, open_cluster, wait_until_ended
from rtdetr_tool.search.cluster_job import SECONDS_TO_SAVE
from rtdetr_tool.search.loop import FOLDER, Search
from rtdetr_tool.search.record import SURPLUS, database_errors
from rtdetr_tool.search.storage import storage_url

logger = logging.getLogger(__name__)

_JOBS = "jobs.json"  # the ids of the jobs, for a search that is run again while they run
_MOST_STARTS = 3  # of a job without progress of its trials
_SECONDS_BETWEEN_CHECKS = 2.0


@dataclass
class _Slot:
    """One worker: its folder, its job, and how often the job was submitted since the last progress."""

    folder: Path
    job: str | None = None
    starts: int = 0
    progress: int = -1

    @property
    def stopped(self) -> bool:
        return self.job is None and self.starts >= _MOST_STARTS


class ClusterSearch:
    """Run a search as jobs. After any exception the jobs are cancelled, and the search can be resumed."""

    def __init__(self, search: Search) -> None:
        self.search, self.section = search, search.section.slurm
        self.folder = search.folder.resolve()
        self.files = self.folder / "jobs"
        on_cpu = search.loaded.spec.train.accelerator == "cpu"
        gpus = self.section.gpus if self.section.gpus is not None else int(not on_cpu)
        self.cluster = open_cluster(self.section, self.files, gpus)
        known = self._known_jobs()
        names = [f"worker_{number:02d}" for number in range(self.section.jobs or 1)]
        self.slots = [_Slot(self.folder / name, known.get(name)) for name in names]

    def run(self) -> None:
        """Return when all trials have ended. MachineError if no job makes progress any more."""
        limit, shown = self.search.limit, self._ended()
        try:
            with database_errors(), Task("Searching", limit, "trials", min(shown, limit)) as progress:
                while not self._check():
                    time.sleep(_SECONDS_BETWEEN_CHECKS)
                    if (ended := self._ended()) > shown:
                        progress.advance(ended - shown)
                        shown = ended
                        self.search.results().write(self.folder)
                wait_until_ended(self.cluster, self._jobs(), SECONDS_TO_SAVE)
        finally:
            self._cancel()

    def _check(self) -> bool:
        """Replace jobs that have ended; whether the search is finished."""
        existing = self.cluster.existing(self._jobs())
        if existing is None:  # the scheduler does not answer at the moment
            return False
        running = self._running()
        if self._started() >= self.search.limit and not running and not (existing and self._has_new_trial()):
            return True
        for slot in self.slots:
            if slot.job is not None and slot.job not in existing:
                self._note_end(slot)
            has_work = self._started() < self.search.limit or slot.folder in running
            if slot.job is None and has_work and not slot.stopped:
                self._submit(slot)
        if all(slot.job is None for slot in self.slots):
            logs = ", ".join(str(slot.folder / "log.txt") for slot in self.slots[:3])
            raise MachineError(
                f"automl.slurm: no job made progress in {_MOST_STARTS} attempts. See {logs} and {self.files} for the "
                "reason, and run the same command again to resume the search"
            )
        return False

    def _submit(self, slot: _Slot) -> None:
        progress = self._progress(slot)
        slot.starts = slot.starts + 1 if progress == slot.progress else 1
        slot.progress = progress
        try:
            slot.job = self.cluster.submit(json.dumps(self._worker_spec(slot)))
        except UserError as error:
            if not self._jobs():
                raise
            logger.warning("%s: %s", slot.folder.name, error)  # for example, more jobs than the user may have
            return
        self._write_jobs()
        logger.info("Submitted job %s for %s", slot.job, slot.folder.name)

    def _note_end(self, slot: _Slot) -> None:
        assert slot.job is not None
        job, slot.job = slot.job, None
        self._write_jobs()
        if self._started() < self.search.limit or slot.folder in self._running():
            again = slot.starts < _MOST_STARTS or self._progress(slot) != slot.progress
            consequence = "it is submitted again" if again else "it is not submitted again"
            output = job_output(self.files, job)
            logger.warning("Job %s of %s ended before the search; %s (%s)", job, slot.folder.name, consequence, output)

    def _worker_spec(self, slot: _Slot) -> Mapping[str, Any]:
        """The user's spec for a worker on one machine, with its folder and the shared storage."""
        explicit = self.search.loaded.explicit
        section = {name: value for name, value in explicit.get("automl", {}).items() if name != "slurm"}
        storage = storage_url(self.search.section, self.folder)
        return {**explicit, "automl": {**section, "results_dir": str(slot.folder), "storage": storage}}

    def _trials(self) -> list[Any]:
        return [t for t in self.search.study.get_trials(deepcopy=False) if not t.user_attrs.get(SURPLUS)]

    def _started(self) -> int:
        return len(self._trials())

    def _ended(self) -> int:
        return sum(trial.state.is_finished() for trial in self._trials())

    def _running(self) -> set[Path]:
        """Folders of the workers that have a trial that has not ended."""
        ours = {slot.folder for slot in self.slots}
        return ours & {self._worker_of(trial) for trial in self._trials() if not trial.state.is_finished()}

    def _has_new_trial(self) -> bool:
        """Whether a worker has begun a trial without having recorded its folder yet."""
        return any(not trial.state.is_finished() and FOLDER not in trial.user_attrs for trial in self._trials())

    def _progress(self, slot: _Slot) -> int:
        """A number that grows with each validation and each end of a trial of this worker."""
        trials = [trial for trial in self._trials() if self._worker_of(trial) == slot.folder]
        return sum(len(trial.intermediate_values) + trial.state.is_finished() for trial in trials)

    @staticmethod
    def _worker_of(trial: Any) -> Path:
        return Path(str(trial.user_attrs.get(FOLDER, ""))).parent

    def _jobs(self) -> list[str]:
        return [slot.job for slot in self.slots if slot.job is not None]

    def _known_jobs(self) -> dict[str, str]:
        """The jobs of an earlier process of this search by worker; some may still run."""
        try:
            known = parse_json((self.folder / _JOBS).read_bytes())
        except (OSError, ValueError):
            return {}
        return {str(name): str(job) for name, job in known.items()} if isinstance(known, dict) else {}

    def _write_jobs(self) -> None:
        jobs = {slot.folder.name: slot.job for slot in self.slots if slot.job is not None}
        write_atomically(self.folder / _JOBS, json.dumps(jobs, indent=2) + "\n")

    def _cancel(self) -> None:
        existing = self.cluster.existing(self._jobs())
        left = self._jobs() if existing is None else sorted(existing)
        if not left:
            return
        logger.info("Cancelling %s", ", ".join(f"job {job}" for job in left))
        self.cluster.cancel(left)
        if late := wait_until_ended(self.cluster, left, SECONDS_TO_SAVE):
            logger.warning("%s still running; see `squeue`", ", ".join(f"job {job}" for job in sorted(late)))
