"""`rtdetr download`: fetch published weights by name and verify them."""

from __future__ import annotations

import argparse

from rtdetr_tool.catalog import PUBLISHED_WEIGHTS, RESTRICTED
from rtdetr_tool.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="names as `rtdetr models` lists them")


def main(options: argparse.Namespace) -> int:
    from rtdetr_tool.checkpoints.published import check_license, download_published, published
    from rtdetr_tool.log import set_up_console

    set_up_console()
    rows = [published(name) for name in options.names]
    unknown = [name for name, row in zip(options.names, rows, strict=True) if row is None]
    if unknown:
        known = ", ".join(row.file.rpartition(".")[0] for row in PUBLISHED_WEIGHTS.values())
        raise UserError(f"{', '.join(unknown)}: not a published name; expected {known}")
    for row in filter(None, rows):
        path = download_published(row)
        if row.license not in RESTRICTED:  # other licenses must be accepted by the user of the weights
            check_license(row.file, row.license, accepted=False)
        print(path)
    return 0
