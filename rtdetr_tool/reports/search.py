"""The report of a search: its best trial, scores over time, importance of parameters, all trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rtdetr_tool.reports import charts, search_charts
from rtdetr_tool.reports.charts import Series
from rtdetr_tool.reports.facts import duration_text, run_section
from rtdetr_tool.reports.page import Block, Code, Page, Section, Table, Text


def search_page(
    content: Mapping[str, Any], score_name: str, log: Sequence[str], best_spec: str, spec_yaml: str
) -> Page:
    """The page of the content of automl.json.

    Args:
        log: names of the parameters that are searched on a logarithmic scale.
        best_spec: the text of best_spec.yaml; empty without one.
    """
    trials, best = content["trials"], content["best"]
    counts = {state: sum(trial["state"] == state for trial in trials) for state in ("finished", "pruned", "failed")}
    supernet = content.get("supernet")
    kind = "sub-detector" if supernet else "trial"
    tiles = [(f"{kind}s", str(len(trials))), *((state, str(count)) for state, count in counts.items() if count)]
    if best is not None:
        tiles = [(f"best {score_name}", f"{content['best_score']:.4f}"), (f"best {kind}", str(best)), *tiles]
    sections = [
        Section(f"Best {kind}", _best_blocks(content, best_spec)),
        Section("History", [] if supernet else _history_blocks(trials, score_name)),
        Section("Score and latency", _pareto_blocks(content, score_name)),
        Section("Parameters", _parameter_blocks(content, trials, log)),
        Section(f"{kind.capitalize()}s", [_trial_table(content, trials)]),
        run_section({}, spec_yaml),
    ]
    title, subtitle = "Hyper-parameter search", ", ".join(content["parameters"])
    if supernet:
        title, subtitle = "Sub-detectors of one training run", supernet["checkpoint"]
    return Page(title, subtitle, tiles, sections)


def _best_blocks(content: Mapping[str, Any], best_spec: str) -> list[Block]:
    if content["best"] is None:
        return [Text("No trial has finished with a usable score.")]
    values = content["best_values"]
    commands = "rtdetr evaluate, inference and export" if content.get("supernet") else "rtdetr train"
    rows = [[name, _text(values[name]), searched] for name, searched in content["parameters"].items() if name in values]
    return [Table(["field", "value", "searched"], rows), Code(f"best_spec.yaml, for {commands}", best_spec)]


def _history_blocks(trials: Sequence[Mapping[str, Any]], score_name: str) -> list[Block]:
    scored = [(t["number"], t["state"], t["score"]) for t in trials if t["score"] is not None]
    curves = [
        Series(f"trial {t['number']}", [int(at) for at in t["scores"]], list(t["scores"].values()), marked=True)
        for t in sorted(trials, key=lambda t: -max(t["scores"].values(), default=-1.0))
        if t["scores"]
    ]
    blocks: list[Block] = []
    if scored:
        blocks.append(search_charts.history("trial_scores", scored, score_name))
    if curves:
        blocks.append(
            charts.lines("validations", "Scores at validations", curves, "validation", score_name, whole_x=True)
        )
    return blocks


def _pareto_blocks(content: Mapping[str, Any], score_name: str) -> list[Block]:
    measured = [t for t in content["trials"] if t["latency"] is not None and t["score"] is not None]
    points = {str(t["number"]): (t["latency"], t["score"]) for t in measured}
    if not content["pareto_front"]:
        return []
    front = [str(number) for number in content["pareto_front"]]
    names, on_front = list(content["parameters"]), [t for n in front for t in measured if str(t["number"]) == n]
    rows = [
        [str(t["number"]), f"{t['latency']:.2f}", f"{t['score']:.4f}", *(_text(t["values"].get(n, "-")) for n in names)]
        for t in on_front
    ]
    chart = search_charts.pareto("pareto_front", points, front, "median latency (ms)", score_name)
    return [chart, Table(["trial", "latency (ms)", score_name, *names], rows, caption="Pareto front")]


def _parameter_blocks(
    content: Mapping[str, Any], trials: Sequence[Mapping[str, Any]], log: Sequence[str]
) -> list[Block]:
    blocks: list[Block] = []
    importance = content["importance"]
    if importance:
        title = "Importance of the parameters"
        blocks.append(
            charts.bars("importance", title, {"share": list(importance.values())}, list(importance), percent=True)
        )
    names = list(content["parameters"])
    shown = [t for t in trials if t["score"] is not None and all(name in t["values"] for name in names)]
    if len(shown) > 1:
        rows = [[t["values"][name] for name in names] for t in shown]
        columns = [(name, name in log) for name in names]
        blocks.append(search_charts.parallel("parallel_coordinates", columns, rows, [t["score"] for t in shown]))
    return blocks


def _trial_table(content: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> Table:
    names, timed = list(content["parameters"]), any(t["latency"] is not None for t in trials)
    rows = [
        [
            str(t["number"]),
            t["state"],
            "-" if t["score"] is None else f"{t['score']:.4f}",
            *(["-" if t["latency"] is None else f"{t['latency']:.2f}"] if timed else []),
            str(len(t["scores"])) if t["scores"] else "-",
            "-" if t["seconds"] is None else duration_text(t["seconds"]),
            *(_text(t["values"].get(name, "-")) for name in names),
            t["reason"],
        ]
        for t in trials
    ]
    columns = ["trial", "state", "score", *(["latency (ms)"] if timed else []), "validations", "time", *names, "reason"]
    levels = ["error" if t["state"] == "failed" else "note" if t["state"] == "pruned" else "" for t in trials]
    return Table(columns, rows, levels=levels)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
