"""`rtdetr download`: fetch weights by name and verify them."""

from __future__ import annotations

import argparse
from pathlib import Path

from rtdetr_tool.catalog import PUBLISHED_WEIGHTS, RESTRICTED
from rtdetr_tool.errors import UserError
from rtdetr_tool.json_output import command_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="names as `rtdetr models` lists them, ids on the Hub, URLs",
    )
    parser.add_argument(
        "--accept-license", choices=[*RESTRICTED], action="append", default=[], help="a license that you accept"
    )


def main(options: argparse.Namespace) -> int:
    from rtdetr_tool.log import set_up_console

    set_up_console()
    _check(options.names)
    command_output().results = paths = list[str]()
    for name in options.names:
        paths.append(str(_download(name, options.accept_license)))
        if not options.json:
            print(paths[-1])
    return 0


def _check(names: list[str]) -> None:
    """UserError for names that are neither published nor an id or a URL."""
    from rtdetr_tool.checkpoints.download import is_url
    from rtdetr_tool.checkpoints.hub import HUB_NAMES, hub_id
    from rtdetr_tool.checkpoints.published import published

    unknown = [name for name in names if not (published(name) or hub_id(name) or is_url(name))]
    if unknown:
        known = ", ".join([*(row.file.rpartition(".")[0] for row in PUBLISHED_WEIGHTS.values()), *HUB_NAMES])
        raise UserError(
            f"{', '.join(unknown)}: not a published name; expected {known}, an id on the Hugging Face Hub "
            "(owner/name), or a URL"
        )


def _download(name: str, licenses: list[str]) -> Path:
    from rtdetr_tool.checkpoints.hub import hub_directory, hub_id, verify
    from rtdetr_tool.checkpoints.published import check_license, download_published, download_url, published

    if row := published(name):
        if row.license in RESTRICTED and row.license not in licenses:
            raise UserError(
                f"{row.file}: published under {RESTRICTED[row.license].title} ({row.license}), which restricts its "
                f"use. If you accept this license, add --accept-license {row.license}"
            )
        check_license(row.file, row.license, accepted=True)
        return download_published(row, accepted=True)
    if model := hub_id(name):
        folder = hub_directory(model)
        verify(folder)
        return folder
    return download_url(name)
