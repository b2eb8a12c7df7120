"""`rtdetr automl`: search for the field values, or the sub-detector of a checkpoint, with the best validation score."""

from __future__ import annotations

import logging
from collections.abc import Callable

from rich.table import Table

from rtdetr_tool.commands.session import run_session
from rtdetr_tool.files import write_atomically
from rtdetr_tool.json_output import collecting_output, command_output
from rtdetr_tool.log import console
from rtdetr_tool.reports.files import write_page
from rtdetr_tool.reports.run import spec_text
from rtdetr_tool.reports.search import search_page
from rtdetr_tool.search.cluster_search import ClusterSearch
from rtdetr_tool.search.loop import Search
from rtdetr_tool.search.results import SearchResults, check_outcome, value_text
from rtdetr_tool.search.sub_detectors import SubDetectorSearch
from rtdetr_tool.spec import LoadedSpec
from rtdetr_tool.spec.metric_names import best_score_name
from rtdetr_tool.spec.required import results_folder
from rtdetr_tool.status import current_status

logger = logging.getLogger(__name__)

_ROWS = 10


def run(loaded: LoadedSpec) -> None:
    spec = loaded.spec
    folder = results_folder(spec.automl, "automl")
    search = (Search if spec.automl.has_trials else SubDetectorSearch)(loaded, folder, train_session)
    if isinstance(search, Search) and spec.automl.slurm.jobs is not None:
        ClusterSearch(search).run()
    else:
        search.run()
    results = search.results()
    results.write(folder)
    command_output().results = results.to_dict()
    best = search.spec_text(results.best) if results.best else ""
    if best:
        write_atomically(folder / "best_spec.yaml", best)
    score_name = best_score_name(spec.train.best_metric, search.kind)
    log = [parameter.name for parameter in results.parameters if parameter.log]
    write_page(search_page(results.to_dict(), score_name, log, best, spec_text(folder)), folder)
    show_results(results, score_name)
    check_outcome(results)
    search.write_specs(results)
    if results.best is not None:
        current_status().running("Search finished.", kpi={"best_score": results.best.score})
    logger.info("Wrote %s, automl.json and report.html", folder / "best_spec.yaml")


def train_session(loaded: LoadedSpec, train: Callable[[LoadedSpec], None]) -> int:
    """Train a trial in a separate session, as `rtdetr train` does."""
    with collecting_output():
        return run_session(loaded, "train", train)


def show_results(results: SearchResults, score_name: str) -> None:
    """Print the best trials, or the Pareto front of sub-detectors."""
    counts = ", ".join(f"{n} {state}" for state in ("finished", "pruned", "failed") if (n := results.count(state)))
    trials, title = results.ranked()[:_ROWS], f"Search: {len(results.trials)} trials ({counts})"
    if results.supernet is not None:
        trials = [trial for number in results.front for trial in results.trials if trial.number == number]
        title = f"Pareto front of {len(results.trials)} sub-detectors ({counts})"
    table = Table(title=title, title_justify="left")
    names = [parameter.name for parameter in results.parameters]
    timed = results.fastest is not None
    for column in ("trial", "state", score_name, *(["latency (ms)"] if timed else []), *names):
        table.add_column(column.rpartition(".")[2], overflow="fold")
    for trial in trials:
        score = "-" if trial.score is None else f"{trial.score:.4f}"
        latency = ["-" if trial.latency is None else f"{trial.latency:.2f}"] if timed else []
        mark = " (best)" if trial is results.best else ""
        values = [value_text(trial.values.get(name, "-")) for name in names]
        table.add_row(str(trial.number), trial.state + mark, score, *latency, *values)
    console().print(table)
