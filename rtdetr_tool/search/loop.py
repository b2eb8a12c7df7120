"""The search itself: choose trials, run them in this process or in several, resume what was killed."""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rtdetr_tool.errors import Preempted, SpecError
from rtdetr_tool.files import make_folder_below, write_atomically
from rtdetr_tool.progress import Task
from rtdetr_tool.search.record import PRUNED, SURPLUS, StudyRecord, database_errors
from rtdetr_tool.search.results import SearchResults, TrialResult, best_spec_text, value_text
from rtdetr_tool.search.study import (
    grid,
    open_study,
    pruner_for,
    require_optuna,
    sampler_for,
    suggest,
)
from rtdetr_tool.search.trial import (
    Job,
    Outcome,
    SearchStopped,
    TrainingSession,
    run_trial,
    trial_folder,
    trial_spec,
)
from rtdetr_tool.search.worker import Score, Stopped, Worker, ready, stop
from rtdetr_tool.spec import LoadedSpec
from rtdetr_tool.spec.search_space import search_space
from rtdetr_tool.status import current_status

if TYPE_CHECKING:
    from optuna.trial import Trial

logger = logging.getLogger(__name__)

_IDENTITY = ".search_id"  # a file: which trials of a shared database belong to this results folder
OWNER, FOLDER, STARTS = "owner", "folder", "starts"  # attributes of trials, as those of `record`
_MOST_STARTS = 3  # of a trial that is killed before its next validation


class Search:
    """A search in a results folder that no other process uses.

    Args:
        session: runs a trial's training, as `rtdetr train` would.
    """

    def __init__(self, loaded: LoadedSpec, folder: Path, session: TrainingSession) -> None:
        require_optuna()
        self.loaded, self.folder, self.session = loaded, folder, session
        self.section = loaded.spec.automl
        space = search_space(loaded.spec)
        self.parameters = space.parameters
        for parameter in space.parameters:
            logger.info("Searching %s: %s", parameter.name, parameter.text)
        for name, reason in space.skipped.items():
            logger.info("Not searching %s: %s; name it in automl.parameters to search it", name, reason)
        self.study = open_study(self.section, folder, loaded.spec, self.parameters)
        self.record = StudyRecord(self.study, self.section, self.parameters, folder)
        train = loaded.spec.train
        self.study.pruner = pruner_for(self.section, train.num_epochs // train.validation_interval)
        self.limit = self.section.trials
        if self.section.sampler == "grid":
            self.limit = min(self.limit, len(grid(self.parameters, self.section.seed)))
        self._left = self._left_behind()

    @property
    def kind(self) -> str:
        """What the trials predict, one of `catalog.PREDICTS`."""
        return self.loaded.spec.model.predicts

    @cached_property
    def identity(self) -> str:
        path = self.folder / _IDENTITY
        if not path.is_file():
            write_atomically(path, uuid.uuid4().hex + "\n")
        return path.read_text(encoding="utf-8").strip()

    def run(self) -> None:
        """Run trials until there are as many as requested. Preempted, KeyboardInterrupt: the search can be resumed."""
        count, gpus = self._workers()
        done = len(self.study.get_trials(deepcopy=False)) - len(self._left)
        with database_errors(), Task("Searching", self.limit, "trials", min(done, self.limit)) as self._progress:
            if count == 1:
                while (job := self._next(None)) is not None:
                    self._run_here(job)
            else:
                self._run_in_processes(count, gpus)

    def results(self) -> SearchResults:
        with database_errors():
            return self.record.results()

    def spec_text(self, trial: TrialResult) -> str:
        """The spec with the values of a trial, for `rtdetr train`."""
        return best_spec_text(self.loaded, trial.values)

    def write_specs(self, results: SearchResults) -> None:
        """Each trial has its spec in its own folder."""

    def _workers(self) -> tuple[int, int]:
        """How many trials run at the same time, and the number of GPUs that they share."""
        import torch

        gpus = torch.cuda.device_count() if self.loaded.spec.train.accelerator in ("auto", "gpu", "cuda") else 0
        return self.section.workers or max(1, gpus), gpus

    def _left_behind(self) -> list[int]:
        """Numbers of the trials that a killed search in this folder did not finish."""
        from optuna.trial import TrialState

        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        left = [trial.number for trial in running if trial.user_attrs.get(OWNER, self.identity) == self.identity]
        shared = self.section.storage is not None
        return [n for n in left if not shared or self.record.frozen(n).user_attrs.get(OWNER) == self.identity]

    def _next(self, gpu: int | None) -> Job | None:
        """The next trial to run: one that was left behind, or a new one; None if there are enough."""
        while True:
            if self._left:
                number = self._left.pop(0)
                self.study.sampler = sampler_for(self.section, self.parameters, number)
                trial = self.record.trial(number)
                logger.info("Resuming trial %d", number)
            else:
                number = len(self.study.get_trials(deepcopy=False))
                if number >= self.limit:
                    return None
                self.study.sampler = sampler_for(self.section, self.parameters, number)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    trial = self.study.ask()
                trial.set_user_attr(OWNER, self.identity)
                if trial.number >= self.limit:  # another machine was faster
                    trial.set_user_attr(SURPLUS, True)
                    self.record.fail(trial, "the search already has automl.trials trials")
                    return None
            job = self._prepare(trial, gpu)
            if job is not None:
                return job

    def _prepare(self, trial: Trial, gpu: int | None) -> Job | None:
        """The job of a trial; None if it is finished already: refused, pruned before, or killed too often."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Optuna, about choices it stores as text
            values = {parameter.name: suggest(trial, parameter) for parameter in self.parameters}
        folder = trial_folder(self.folder, trial.number)
        trial.set_user_attr(FOLDER, str(folder))
        shown = ", ".join(f"{name}={value_text(value)}" for name, value in values.items())
        message = f"Trial {trial.number} ({trial.number + 1} of {self.limit}): {shown}"
        logger.info(message)
        current_status().running(message)
        frozen = self.record.frozen(trial.number)
        if frozen.user_attrs.get(PRUNED):
            self._finish(trial, Outcome(pruned=True))
            return None
        count, validations = frozen.user_attrs.get(STARTS, (0, 0))
        count = count + 1 if len(frozen.intermediate_values) == validations else 1
        if count > _MOST_STARTS:
            self._finish(trial, Outcome(reason=f"its process was killed {_MOST_STARTS} times without progress"))
            return None
        trial.set_user_attr(STARTS, [count, len(frozen.intermediate_values)])
        overrides = values if gpu is None else {**values, "train.gpu_ids": [gpu]}
        try:
            spec = trial_spec(self.loaded, overrides, folder)
        except SpecError as error:
            self._finish(trial, Outcome(reason="; ".join(error.problems)))
            return None
        make_folder_below(self.folder, folder)
        return Job(trial.number, spec, self.section.latency_runtime if self.section.has_latency else None)

    def _run_here(self, job: Job) -> None:
        trial = self.record.trial(job.number)
        try:
            outcome = run_trial(job, self.session, lambda *score: self.record.report(trial, Score(*score)))
        except Preempted:
            trial.set_user_attr(STARTS, [0, 0])
            raise
        self._finish(trial, outcome)

    def _run_in_processes(self, count: int, gpus: int) -> None:
        threads = None if gpus else max(1, len(os.sched_getaffinity(0)) // count)
        workers = [Worker(self.session, threads) for _ in range(count)]
        devices = [slot % gpus if gpus else None for slot in range(count)]
        try:
            while True:
                for worker, gpu in zip(workers, devices, strict=True):
                    if worker.job is None and (job := self._next(gpu)) is not None:
                        worker.start(job)
                busy = [worker for worker in workers if worker.job is not None]
                if not busy:
                    break
                for worker in ready(busy):
                    if not self._handle(worker):
                        workers[workers.index(worker)] = Worker(self.session, threads)
        finally:
            stop(workers)

    def _handle(self, worker: Worker) -> bool:
        """Handle a message of a process; False if the process has ended."""
        job = worker.job
        assert job is not None
        message, trial = worker.receive(), self.record.trial(job.number)
        if isinstance(message, Score):
            with contextlib.suppress(OSError):  # the process has ended: reported as its next message
                worker.connection.send(self.record.report(trial, message))
            return True
        worker.job = None
        if isinstance(message, Stopped):
            raise SearchStopped(message.reason)
        if isinstance(message, Outcome):
            self._finish(trial, message)
            return True
        logger.warning("The process of trial %d %s; the trial is started again", job.number, worker.end)
        self._left.append(job.number)
        return False

    def _finish(self, trial: Trial, outcome: Outcome) -> None:
        self.record.finish(trial, outcome)
        self._progress.advance()
