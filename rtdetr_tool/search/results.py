"""The results of a search as data: trials, the best one, the Pareto front, the importance of parameters."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rtdetr_tool.errors import UserError
from rtdetr_tool.files import write_atomically
from rtdetr_tool.messages import first_of
from rtdetr_tool.redaction import without_secrets
from rtdetr_tool.search.study import decoded
from rtdetr_tool.spec import AutomlSpec, LoadedSpec
from rtdetr_tool.spec.search_ranges import Parameter, with_values

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

logger = logging.getLogger(__name__)

_STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}


@dataclass(frozen=True)
class TrialResult:
    """One trial; `scores` by validation, `seconds` since it was proposed."""

    number: int
    state: str
    score: float | None
    latency: float | None
    values: dict[str, Any]
    scores: dict[int, float]
    seconds: float | None
    folder: str
    reason: str = ""

    @staticmethod
    def of(trial: FrozenTrial, parameters: Sequence[Parameter]) -> TrialResult:
        known = {parameter.name: parameter for parameter in parameters}
        params = {name: decoded(known[name], value) for name, value in trial.params.items() if name in known}
        values = trial.values or []
        return TrialResult(
            number=trial.number,
            state=_STATES[trial.state.name],
            score=values[0] if values else None,
            latency=values[1] if len(values) > 1 else None,
            values={name: params[name] for name in known if name in params},
            scores=dict(sorted(trial.intermediate_values.items())),
            seconds=trial.duration.total_seconds() if trial.duration is not None else None,
            folder=str(trial.user_attrs.get("folder", "")),
            reason=str(trial.user_attrs.get("reason", "")),
        )


@dataclass(frozen=True)
class SearchResults:
    """All trials in their order, and what follows from them."""

    trials: list[TrialResult]
    parameters: Sequence[Parameter]
    best: TrialResult | None = None
    front: list[int] = field(default_factory=list)  # numbers of the trials that no other beats in score and latency
    importance: dict[str, float] = field(default_factory=dict)
    max_latency: float | None = None
    supernet: dict[str, Any] | None = None  # the weights of which the trials are sub-detectors, and how they are scored

    @staticmethod
    def of(
        study: optuna.Study, frozen: Sequence[FrozenTrial], parameters: Sequence[Parameter], section: AutomlSpec
    ) -> SearchResults:
        trials = [TrialResult.of(trial, parameters) for trial in frozen]
        finished = [trial for trial in trials if trial.state == "finished"]
        results = SearchResults.of_trials(trials, parameters, section)
        return replace(results, importance=_importance(study, len(finished), section))

    @staticmethod
    def of_trials(
        trials: list[TrialResult], parameters: Sequence[Parameter], section: AutomlSpec, supernet: Any = None
    ) -> SearchResults:
        finished, limit = [trial for trial in trials if trial.state == "finished"], section.max_latency
        fast = [t for t in finished if limit is None or (t.latency is not None and t.latency <= limit)]
        return SearchResults(
            trials,
            parameters,
            best=max(fast, key=lambda trial: (trial.score or 0.0, -(trial.latency or 0.0)), default=None),
            front=pareto_front(finished) if section.has_latency else [],
            max_latency=limit,
            supernet=supernet,
        )

    @property
    def fastest(self) -> float | None:
        return min((t.latency for t in self.trials if t.latency is not None), default=None)

    def count(self, state: str) -> int:
        return sum(trial.state == state for trial in self.trials)

    def ranked(self) -> list[TrialResult]:
        """Finished trials by score, then pruned ones by their last score, then the others."""
        order = {"finished": 0, "pruned": 1}
        return sorted(self.trials, key=lambda t: (order.get(t.state, 2), -(t.score if t.score is not None else -1.0)))

    def to_dict(self) -> dict[str, Any]:
        """The content of automl.json."""
        return {
            "best": None if self.best is None else self.best.number,
            "best_score": None if self.best is None else self.best.score,
            "best_values": None if self.best is None else self.best.values,
            "max_latency": self.max_latency,
            "pareto_front": self.front,
            "importance": self.importance,
            "parameters": {parameter.name: parameter.text for parameter in self.parameters},
            "trials": [asdict(trial) for trial in self.trials],
            **({} if self.supernet is None else {"supernet": self.supernet}),
        }

    def write(self, folder: Path) -> None:
        content = without_secrets(self.to_dict())
        write_atomically(folder / "automl.json", json.dumps(content, indent=2) + "\n")


def pareto_front(trials: Sequence[TrialResult]) -> list[int]:
    """Numbers of the trials that no other beats in score and latency, the fastest first."""
    front: list[TrialResult] = []
    for trial in sorted(trials, key=lambda t: (t.latency or 0.0, -(t.score or 0.0))):
        if not front or (trial.score or 0.0) > (front[-1].score or 0.0):
            front.append(trial)
    return [trial.number for trial in front]


def best_spec_text(loaded: LoadedSpec, values: Mapping[str, Any]) -> str:
    """The user's spec with the values of a trial, for `rtdetr train`; secrets are masked."""
    data = without_secrets(with_values(loaded.explicit, values))
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return text


def value_text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _importance(study: optuna.Study, finished: int, section: AutomlSpec) -> dict[str, float]:
    """Shares of the parameters in the variation of the score (PED-ANOVA); empty if there are too few trials."""
    import optuna

    if finished < 4:
        return {}
    target = (lambda trial: float(trial.values[0])) if section.has_latency else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            importance = optuna.importance.get_param_importances(study, evaluator=evaluator, target=target)
    except Exception as error:  # for example, all scores are equal
        logger.debug("the importance of parameters cannot be computed: %s", error)
        return {}
    return {name: float(share) for name, share in importance.items() if share == share}


def check_outcome(results: SearchResults) -> None:
    """UserError if no trial has a score, or none is fast enough."""
    if results.best is not None:
        return
    failures = [f"trial {trial.number}: {trial.reason}" for trial in results.trials if trial.reason]
    if failures and len(failures) == len(results.trials):
        raise UserError(f"automl: all {len(failures)} trials failed: {first_of(failures, 3)}")
    if results.fastest is not None:
        raise UserError(
            f"automl.max_latency: no trial is within {results.max_latency:g} ms; the fastest has {results.fastest:.2f} "
            "ms. Raise it, or search smaller models"
        )
    raise UserError("automl: no trial has finished; see automl.json for the reasons")
