"""Record the trials of a search in its study: scores, outcomes and failures."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rtdetr_tool.errors import MachineError
from rtdetr_tool.messages import first_line
from rtdetr_tool.redaction import mask_secrets
from rtdetr_tool.search.results import SearchResults
from rtdetr_tool.search.trial import Outcome
from rtdetr_tool.search.worker import Score
from rtdetr_tool.spec import AutomlSpec
from rtdetr_tool.spec.search_ranges import Parameter
from rtdetr_tool.status import current_status

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

logger = logging.getLogger(__name__)

REASON, PRUNED, SURPLUS = "reason", "pruned", "surplus"  # attributes of trials


class StudyRecord:
    """The trials of a study, and the files in `folder` that show them."""

    def __init__(self, study: optuna.Study, section: AutomlSpec, parameters: Sequence[Parameter], folder: Path) -> None:
        self.study, self.section, self.parameters, self.folder = study, section, parameters, folder

    def frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def trial(self, number: int) -> Trial:
        from optuna.trial import Trial

        return Trial(self.study, self.frozen(number)._trial_id)

    def results(self) -> SearchResults:
        trials = [trial for trial in self.study.get_trials() if not trial.user_attrs.get(SURPLUS)]
        return SearchResults.of(self.study, trials, self.parameters, self.section)

    def report(self, trial: Trial, score: Score) -> bool:
        """Record a score; whether to end the trial."""
        if self.section.has_latency:
            return False
        if score.validation not in self.frozen(trial.number).intermediate_values:
            trial.report(score.value, score.validation)
        pruned = not score.last and trial.should_prune()
        if pruned:
            trial.set_user_attr(PRUNED, True)
        return pruned

    def finish(self, trial: Trial, outcome: Outcome) -> None:
        from optuna.trial import TrialState

        number = trial.number
        if outcome.reason:
            self.fail(trial, outcome.reason)
        elif outcome.pruned:
            self.study.tell(number, state=TrialState.PRUNED)
            logger.info("Trial %d was pruned", number)
        else:
            values = [outcome.score, outcome.latency] if self.section.has_latency else [outcome.score]
            self.study.tell(number, [float(value) for value in values if value is not None])
            latency = "" if outcome.latency is None else f", {outcome.latency:.2f} ms"
            logger.info("Trial %d: %.4f%s", number, outcome.score, latency)
        results = self.results()
        results.write(self.folder)
        best = {} if results.best is None else {"best_score": results.best.score}
        current_status().running(f"Trial {number} finished.", kpi=best)

    def fail(self, trial: Trial, reason: str) -> None:
        from optuna.trial import TrialState

        reason = mask_secrets(reason)
        trial.set_user_attr(REASON, reason)
        self.study.tell(trial.number, state=TrialState.FAIL)
        if not self.frozen(trial.number).user_attrs.get(SURPLUS):
            logger.warning("Trial %d failed: %s", trial.number, reason)


@contextlib.contextmanager
def database_errors() -> Iterator[None]:
    """MachineError for a database that fails during the search."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        raise MachineError(
            f"automl.storage: the database failed: {mask_secrets(first_line(error))}. Run the same command again "
            "to resume the search"
        ) from error
