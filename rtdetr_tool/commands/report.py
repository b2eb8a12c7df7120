"""`rtdetr report`: compare runs in one page."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from rtdetr_tool.errors import UserError
from rtdetr_tool.json_output import command_output
from rtdetr_tool.progress import track

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", metavar="DIR", help="results folders of runs")
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        default="comparison",
        help="folder to write report.html to (default: comparison)",
    )


def main(options: argparse.Namespace) -> int:
    for folder in options.folders:
        if not os.path.exists(folder):
            raise UserError(f"{folder} does not exist; expected the results folder of a run")
    from rtdetr_tool.log import set_up_console
    from rtdetr_tool.reports.compare import comparison_page, read_run, run_names
    from rtdetr_tool.reports.files import write_page

    set_up_console()
    folders = [Path(folder) for folder in options.folders]
    named = list(zip(folders, run_names(folders), strict=True))
    runs = [read_run(folder, name) for folder, name in track(named, "Reading runs", unit="runs")]
    target = Path(options.output)
    try:
        target.mkdir(parents=True, exist_ok=True)
        page = write_page(comparison_page(runs), target)
    except OSError as error:
        raise UserError(f"{target}: the report cannot be written: {error.strerror or error}") from None
    command_output().results = {"page": str(page), "runs": [run.name for run in runs]}
    logger.info("Wrote %s", page)
    return 0
