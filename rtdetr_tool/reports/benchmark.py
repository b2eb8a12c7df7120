"""The report of a benchmark: latency, throughput and memory by runtime, and mAP against latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rtdetr_tool.metrics.result import score_text
from rtdetr_tool.reports import charts
from rtdetr_tool.reports.facts import run_section
from rtdetr_tool.reports.page import Block, Page, Section, Table

COLUMNS = ("runtime", "batch", "median (ms)", "p95", "p99", "images/s", "decode", "preprocess", "model", "postprocess")


def timing_rows(runtimes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row per runtime and batch size under `COLUMNS`; the parts are milliseconds per image."""
    return [
        [
            runtime["name"], str(timing["batch"]), *(f"{timing[key]:.1f}" for key in ("median", "p95", "p99")),
            f"{timing['images_per_second']:.1f}", *(f"{value:.2f}" for value in timing["parts"].values()),
        ]
        for runtime in runtimes
        for timing in runtime["timings"]
    ]  # fmt: skip


def summary_rows(runtimes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row per runtime: device, memory, size of the file, mAP."""
    return [
        [
            runtime["name"], runtime["device"], _number(runtime["memory_mib"], 0), _number(runtime["megabytes"], 1),
            score_text(runtime["scores"].get("mAP")), score_text(runtime["scores"].get("mAP50")),
        ]
        for runtime in runtimes
        if not runtime["skipped"]
    ]  # fmt: skip


SUMMARY = ("runtime", "device", "memory (MiB)", "file (MB)", "mAP", "mAP50")


def benchmark_page(content: Mapping[str, Any], spec_yaml: str) -> Page:
    """The page of the content of benchmark.json."""
    runtimes = content["runtimes"]
    first = min((t["batch"] for r in runtimes for t in r["timings"]), default=1)
    latency = {r["name"]: next((t["median"] for t in r["timings"] if t["batch"] == first), None) for r in runtimes}
    measured = {name: value for name, value in latency.items() if value is not None}
    blocks: list[Block] = []
    if measured:
        blocks.append(
            charts.bars(
                "latency", f"Latency at batch {first}", {"median": list(measured.values())}, list(measured), "ms"
            )
        )
    scored = {r["name"]: r["scores"]["mAP"] for r in runtimes if r["scores"].get("mAP") is not None}
    points = {name: (measured[name], score) for name, score in scored.items() if name in measured}
    if points:
        title = f"mAP against latency at batch {first}"
        blocks.append(charts.points("map_latency", title, points, "median latency (ms)", "mAP"))
    skipped = [[r["name"], r["skipped"]] for r in runtimes if r["skipped"]]
    sections = [
        Section("Latency", [*blocks, Table(COLUMNS, timing_rows(runtimes), caption="Parts: milliseconds per image")]),
        Section("Memory and scores", [Table(SUMMARY, summary_rows(runtimes))]),
        Section("Skipped", [Table(["runtime", "reason"], skipped)] if skipped else []),
        run_section({"threads": str(content["threads"]), "warm-up": f"{content['warmup']} steps"}, spec_yaml),
    ]
    tiles = []
    if content["network"]:
        network = content["network"]
        tiles = [
            ("parameters", f"{network['parameters'] / 1e6:.1f} M"),
            ("GFLOPs per image", f"{network['gflops']:.1f}"),
            ("input", f"{network['input'][0]} × {network['input'][1]}"),
        ]
    if measured:
        fastest = min(measured, key=lambda name: measured[name])
        tiles += [("fastest runtime", fastest), (f"latency at batch {first}", f"{measured[fastest]:.1f} ms")]
    return Page("Benchmark", content["checkpoint"], tiles, sections)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
