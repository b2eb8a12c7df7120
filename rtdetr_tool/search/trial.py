"""One trial of a search: an ordinary training run in its own folder, and the latency of its best weights."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtdetr_tool.errors import MachineError, Preempted, RtdetrError, UserError, WriteError
from rtdetr_tool.messages import first_line
from rtdetr_tool.search import latency
from rtdetr_tool.spec import LoadedSpec, spec_from_dict
from rtdetr_tool.spec.search_ranges import with_values

Report = Callable[[int, float, bool], bool]  # validation, score, whether it is the last one -> whether to end the trial
# Runs a function as `rtdetr train` on a spec (with results folder, log and lock) and returns the exit code.
TrainingSession = Callable[[LoadedSpec, Callable[[LoadedSpec], None]], int]

_INTERRUPTED = 130


@dataclass(frozen=True)
class Job:
    """What a process needs to run a trial. `latency_runtime`: measure latency in it; None = do not measure."""

    number: int
    loaded: LoadedSpec
    latency_runtime: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of a trial; `reason` is why it failed."""

    score: float | None = None
    latency: float | None = None
    pruned: bool = False
    reason: str = ""


class SearchStopped(RtdetrError):
    """A fault that other trials would have as well, such as a full disk; the search can be resumed."""


def trial_folder(folder: Path, number: int) -> Path:
    return folder / f"trial_{number:04d}"


def trial_spec(loaded: LoadedSpec, values: dict[str, Any], folder: Path) -> LoadedSpec:
    """The spec of a trial: that of the search with other values, for `train`. SpecError if it is refused."""
    explicit = with_values(loaded.explicit, {**values, "train.results_dir": str(folder)})
    return LoadedSpec(spec_from_dict(explicit, "train"), explicit, source=loaded.source)


def run_trial(job: Job, session: TrainingSession, report: Report) -> Outcome:
    """Train, resuming from what an earlier attempt left in the folder.

    Raises:
        Preempted, KeyboardInterrupt: a signal ended the run.
        SearchStopped: the machine is at fault, not the trial.
    """
    from rtdetr_tool.training.callbacks.score_report import ScoreReport
    from rtdetr_tool.training.fit import fit

    callback, results, errors = ScoreReport(report), [], list[Exception]()

    def train(loaded: LoadedSpec) -> None:
        try:
            results.append(fit(loaded.spec, callbacks=[callback]))
        except Exception as error:
            errors.append(error)
            raise

    code = session(job.loaded, train)
    _free_memory()
    if code == Preempted.exit_code:
        raise Preempted(f"trial {job.number} was ended by a signal; run the same command again to resume.")
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    if errors and isinstance(errors[0], (MachineError, WriteError)):
        raise SearchStopped(f"trial {job.number}: {first_line(errors[0])}") from errors[0]
    if not results:
        return Outcome(
            reason=reason_of(errors[0]) if errors else f"the run ended with exit code {code}; see its log.txt"
        )
    (result,) = results
    if callback.ended_at is not None:
        return Outcome(result.best_score, pruned=True)
    if result.best_score is None:
        return Outcome(reason="the validation data has no objects to score the detections against")
    if job.latency_runtime is None:
        return Outcome(result.best_score)
    try:
        return Outcome(result.best_score, measure_latency(job, result.best_path or result.latest_path))
    except UserError as error:
        return Outcome(result.best_score, reason=f"latency: {reason_of(error)}")


def measure_latency(job: Job, checkpoint: Path | None) -> float:
    """Median milliseconds of a trial's weights for one image."""
    spec = job.loaded.spec
    return latency.measure_latency(spec, str(checkpoint), str(job.latency_runtime), Path(spec.train.results_dir or "."))


def reason_of(error: Exception) -> str:
    """The reason of a failed trial."""
    problems = getattr(error, "problems", None)
    if problems:
        return "; ".join(problems)
    name = "" if isinstance(error, RtdetrError) else f"{type(error).__name__}: "
    return name + first_line(error, 500)


def _free_memory() -> None:
    """Free the memory of a trial on the GPU before the next one."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
