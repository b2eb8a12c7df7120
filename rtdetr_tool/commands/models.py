"""`rtdetr models`: the published weights that can be used by name."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from rtdetr_tool.catalog import PUBLISHED_WEIGHTS, RESTRICTED
from rtdetr_tool.json_output import command_output
from rtdetr_tool.log import drop_stdout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has no arguments of its own."""


def main(options: argparse.Namespace) -> int:
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    rows = published_rows()
    command_output().results, command_output().bare = rows, True
    try:
        if not options.json:
            _print_table(rows)
    except BrokenPipeError:
        drop_stdout()
    return 0


def published_rows() -> list[dict[str, Any]]:
    """Name, license, and path of the downloaded file or directory (null if there is none) of each published model."""
    from rtdetr_tool.checkpoints.hub import HUB_LICENSE, HUB_NAMES, cached_directory
    from rtdetr_tool.checkpoints.published import cache_folder

    rows = []
    for row in PUBLISHED_WEIGHTS.values():
        path = cache_folder() / row.file
        rows.append(_row(row.file.rpartition(".")[0], row.license, str(path) if path.is_file() else None))
    for name, hub_id in HUB_NAMES.items():
        folder = cached_directory(hub_id)
        rows.append(_row(name, HUB_LICENSE, str(folder) if folder else None))
    return rows


def _row(name: str, license: str, path: str | None) -> dict[str, Any]:
    return {"name": name, "license": license, "restricted": license in RESTRICTED, "path": path}


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "license", "downloaded")
    for row in rows:
        license = f"{row['license']} (must be accepted)" if row["restricted"] else row["license"]
        table.add_row(row["name"], license, "yes" if row["path"] else "-")
    console = Console()
    console.print(table)
    console.print("Any id of an RT-DETR or D-FINE on the Hugging Face Hub (owner/name) and any URL work as well.")
