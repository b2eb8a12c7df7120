"""`rtdetr benchmark`: latency, throughput, memory and, on request, the score of a model in every runtime."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict

from rich.table import Table

from rtdetr_tool.errors import UserError
from rtdetr_tool.files import make_folder_below, write_atomically
from rtdetr_tool.json_output import command_output
from rtdetr_tool.log import console
from rtdetr_tool.progress import track
from rtdetr_tool.reports.benchmark import COLUMNS, SUMMARY, benchmark_page, summary_rows, timing_rows
from rtdetr_tool.reports.files import write_page
from rtdetr_tool.reports.run import spec_text
from rtdetr_tool.spec import LoadedSpec
from rtdetr_tool.spec.required import results_folder
from rtdetr_tool.status import current_status
from rtdetr_tool.workflows.benchmark import benchmark_images, candidates, describe_network, to_dict
from rtdetr_tool.workflows.benchmark_steps import measure

logger = logging.getLogger(__name__)


def run(loaded: LoadedSpec) -> None:
    section = loaded.spec.benchmark
    folder = results_folder(section, "benchmark")
    images = benchmark_images(loaded.spec)
    make_folder_below(folder, folder / "models")
    network = describe_network(loaded)
    runtimes, measurements = candidates(loaded, folder)
    for candidate in track(runtimes, "Measuring"):
        current_status().running(f"Measuring {candidate.name}")
        measurements.append(measure(candidate, loaded, images))
    measurements.sort(key=lambda measurement: bool(measurement.skipped))
    command_output().results = content = to_dict(network, measurements, section)
    write_atomically(folder / "benchmark.json", json.dumps(content, indent=2) + "\n")
    write_page(benchmark_page(content, spec_text(folder)), folder)
    rows = [asdict(measurement) for measurement in measurements]
    for title, columns, lines in (
        ("Latency", COLUMNS[:6], [line[:6] for line in timing_rows(rows)]),
        ("Memory and scores", SUMMARY, summary_rows(rows)),
    ):
        table = Table(title=title)
        for column in columns:
            table.add_column(column, justify="left" if column in ("runtime", "device") else "right")
        for line in lines:
            table.add_row(*line)
        console().print(table)
    if network is not None:
        logger.info(
            "%.1f M parameters, %.1f GFLOPs at %d x %d", network.parameters / 1e6, network.gflops, *network.input
        )
    for measurement in measurements:
        if measurement.skipped:
            logger.warning("Skipping %s: %s", measurement.name, measurement.skipped)
    if all(measurement.skipped for measurement in measurements):
        raise UserError("benchmark: none of the runtimes can run this model here; see the reasons above")
    fastest = {m.name: m.timings[0].median for m in measurements if m.timings}
    current_status().running("Benchmark finished.", kpi={f"latency_{name}": value for name, value in fastest.items()})
    logger.info("Wrote %s and benchmark.json", folder / "report.html")
