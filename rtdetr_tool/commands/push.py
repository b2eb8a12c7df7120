"""`rtdetr push`: share a detector on the Hugging Face Hub, with a model card."""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

from rtdetr_tool.json_output import command_output

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from rtdetr_tool.workflows.convert import RTDETR
    from rtdetr_tool.workflows.model_card import LAYOUTS

    parser.add_argument("source", metavar="CHECKPOINT", help="weights of any supported format")
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="id on the Hub; the repository is created if needed")
    parser.add_argument("--folder", metavar="DIR", help="write the files into DIR, and upload nothing")
    parser.add_argument("--license", metavar="ID", help="license of the weights for the model card, such as apache-2.0")
    parser.add_argument(
        "--layout", choices=LAYOUTS, default=RTDETR, help="transformers: also opened by transformers, if it supports it"
    )
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--message", default="", metavar="TEXT", help="commit message")
    parser.add_argument("--force", action="store_true", help="overwrite files in DIR")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields that CHECKPOINT does not store")


def main(options: argparse.Namespace) -> int:
    from rtdetr_tool.formats.opening import open_detector
    from rtdetr_tool.log import set_up_console
    from rtdetr_tool.spec import read_spec
    from rtdetr_tool.workflows.share import check_repo_id, upload, write_directory

    check_repo_id(options.repo_id)
    loaded = read_spec(None, options.overrides, None)
    set_up_console()
    opened = open_detector(options.source, loaded)
    fields = {"repo_id": options.repo_id, "license": options.license, "layout": options.layout}
    if options.folder is not None:
        written = write_directory(opened, Path(options.folder), overwrite=options.force, **fields)
        command_output().results = {"repo_id": options.repo_id, "folder": str(written)}
        logger.info("Wrote %s", written)
        return 0
    with tempfile.TemporaryDirectory(prefix="rtdetr-push-") as folder:
        write_directory(opened, Path(folder), **fields)
        url = upload(Path(folder), options.repo_id, private=options.private, message=options.message)
    command_output().results = {"repo_id": options.repo_id, "url": str(url)}
    logger.info("Uploaded %s to %s", options.source, url)
    return 0
