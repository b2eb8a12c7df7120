"""`rtdetr models`: the published weights that can be used by name."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rtdetr_tool.catalog import PUBLISHED_WEIGHTS, RESTRICTED
from rtdetr_tool.log import drop_stdout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")


def main(options: argparse.Namespace) -> int:
    rows = published_rows()
    try:
        if options.json:
            print(json.dumps(rows, indent=2))
        else:
            _print_table(rows)
    except BrokenPipeError:
        drop_stdout()
    return 0


def published_rows() -> list[dict[str, Any]]:
    """Name, license, and path of the downloaded file (null if it is not downloaded) of each published model."""
    from rtdetr_tool.checkpoints.published import cache_folder

    rows = []
    for row in PUBLISHED_WEIGHTS.values():
        path = cache_folder() / row.file
        rows.append(
            {
                "name": row.file.rpartition(".")[0],
                "license": row.license,
                "restricted": row.license in RESTRICTED,
                "downloadable": row.url is not None,
                "path": str(path) if path.is_file() else None,
            }
        )
    return rows


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "license", "downloaded")
    for row in rows:
        license = f"{row['license']} (must be accepted)" if row["restricted"] else row["license"]
        table.add_row(row["name"], license, "yes" if row["path"] else "-" if row["downloadable"] else "by hand only")
    Console().print(table)
