"""Compare runs by the content of their results folders: scores, curves, and differences of their specs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rtdetr_tool.errors import UserError
from rtdetr_tool.files import parse_json, read_limited
from rtdetr_tool.metrics.result import score_text
from rtdetr_tool.reports import charts
from rtdetr_tool.reports.charts import Series
from rtdetr_tool.reports.history import Curve, read_history
from rtdetr_tool.reports.page import Block, Page, Section, Table, Text
from rtdetr_tool.reports.run import spec_text
from rtdetr_tool.spec.metric_names import VAL_MAP

TRAINING, EVALUATION = ("train", "distill"), "evaluate"
_MAX_RESULTS_BYTES = 64 << 20
_STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_ELSEWHERE = ("results_dir", "wandb", "mlflow")  # sections without effect on scores


@dataclass(frozen=True)
class Run:
    """The results of a run: training curves, evaluation results, and the flattened spec."""

    name: str
    history: Mapping[str, Curve]
    results: Mapping[str, Any]
    spec: Mapping[str, str]


def read_run(folder: Path, name: str) -> Run:
    """A run from the results folder of a command, or the folder above it.

    Raises:
        UserError: the folder has neither curves nor results.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; expected the results folder of a run")
    training = next((folder / part for part in TRAINING if (folder / part / "csv_logs").is_dir()), folder)
    evaluation = folder / EVALUATION if (folder / EVALUATION / "results.json").is_file() else folder
    history, results = read_history(training), _results(evaluation / "results.json")
    if not history and not results:
        raise UserError(
            f"{folder}: no run to report; expected csv_logs or results.json, in the folder or in its {TRAINING[0]}, "
            f"{TRAINING[1]} or {EVALUATION} folder"
        )
    text = spec_text(training) or spec_text(evaluation)
    return Run(name, history, results, _flat_spec(text))


def run_names(folders: Sequence[Path]) -> list[str]:
    """The parts of the paths that differ; the whole paths if the same folder is named twice."""
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise UserError("a results folder is given twice; expected different ones")
    if len(parts) == 1:
        return [parts[0][-1]]
    shared = len(os.path.commonpath([os.path.join(*part) for part in parts]).rstrip(os.sep).split(os.sep))
    return ["/".join(part[shared:]) or part[-1] for part in parts]


def comparison_page(runs: Sequence[Run]) -> Page:
    """The page that compares runs."""
    sections = [
        Section("Scores", _score_blocks(runs)),
        Section("Validation", _curves(runs, _is_score)),
        Section("Losses", _curves(runs, lambda name: name.endswith("/loss"))),
        Section("By class", _class_blocks(runs)),
        Section("Spec", [_spec_table(runs)]),
    ]
    best = max(runs, key=lambda run: _best(run) or -1.0)
    tiles = [("runs", str(len(runs)))]
    if _best(best) is not None:
        tiles += [("best run", best.name), ("best mAP", score_text(_best(best)))]
    return Page("Comparison of runs", ", ".join(run.name for run in runs), tiles, sections)


def _results(file: Path) -> Mapping[str, Any]:
    try:
        results = parse_json(read_limited(file, _MAX_RESULTS_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    return results if isinstance(results, dict) else {}


def _flat_spec(text: str) -> dict[str, str]:
    try:
        content = yaml.safe_load(text) if text else {}
    except (yaml.YAMLError, RecursionError):
        return {}

    def walk(value: Any, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from walk(inner, f"{path}.{key}" if path else str(key))
        else:
            yield path, json.dumps(value, default=str)

    return dict(walk(content, "")) if isinstance(content, dict) else {}


def _is_score(name: str) -> bool:
    return "mAP" in name and name.startswith("val/")


def _main_score(run: Run) -> Curve | None:
    """The curve of the boxes' mAP."""
    return run.history.get(VAL_MAP)


def _best(run: Run) -> float | None:
    curve, score = _main_score(run), run.results.get("AP")
    values = [*(curve.values if curve else []), *([score] if isinstance(score, (int, float)) else [])]
    return max(values, default=None)


def _score_blocks(runs: Sequence[Run]) -> list[Block]:
    rows = []
    for run in runs:
        curve = _main_score(run)
        at = max(range(len(curve.values)), key=curve.values.__getitem__) if curve and curve.values else None
        steps = max((c.steps[-1] for c in run.history.values() if c.steps), default=None)
        rows.append(
            [
                run.name,
                "-" if steps is None else f"{steps + 1:,}",
                "-" if curve is None or at is None else f"{curve.values[at]:.4f}",
                "-" if curve is None or at is None else f"{curve.epochs[at] + 1}",
                *(score_text(_number(run.results.get(name))) for name in _STATS),
            ]
        )
    columns = ["run", "steps", "best validation mAP", "epoch", *(f"{name} (evaluate)" for name in _STATS)]
    return [Table(columns, rows)]


def _curves(runs: Sequence[Run], accepts: Any) -> list[Block]:
    names = sorted({name for run in runs for name in run.history if accepts(name)})
    blocks: list[Block] = []
    for name in names:
        series = [
            Series(run.name, run.history[name].steps, run.history[name].values, marked=True)
            for run in runs
            if name in run.history
        ]
        blocks.append(charts.lines(name.replace("/", "_"), name, series, "step", whole_x=True))
    return blocks


def _class_blocks(runs: Sequence[Run]) -> list[Block]:
    scores = {run.name: _class_scores(run) for run in runs}
    scored = {name: by_class for name, by_class in scores.items() if by_class}
    classes = list(dict.fromkeys(name for by_class in scored.values() for name in by_class))
    if not classes:
        return []
    rows = [[name, *(score_text(by_class.get(name)) for by_class in scored.values())] for name in classes]
    return [Table(["class", *scored], rows, caption="AP by class (evaluate)")]


def _class_scores(run: Run) -> dict[str, float | None]:
    rows = run.results.get("per_class")
    if not isinstance(rows, list):
        return {}
    return {str(row["name"]): _number(row.get("AP")) for row in rows if isinstance(row, dict) and "name" in row}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _spec_table(runs: Sequence[Run]) -> Block:
    keys = sorted({key for run in runs for key in run.spec})
    rows = []
    for key in keys:
        values = [run.spec.get(key, "-") for run in runs]
        if len(set(values)) > 1 and key.split(".")[0] not in _ELSEWHERE and not key.endswith("results_dir"):
            rows.append([key, *values])
    return Table(["field", *(run.name for run in runs)], rows) if rows else Text("The specs are the same.")
