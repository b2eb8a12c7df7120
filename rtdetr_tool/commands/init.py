"""`rtdetr init`: write a training spec for a dataset."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import asdict
from pathlib import Path

from rtdetr_tool.errors import MissingData, UserError
from rtdetr_tool.json_output import command_output
from rtdetr_tool.progress import Steps

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="folder of a COCO, Roboflow, YOLO or Pascal VOC dataset")
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="spec.yaml", help="file to write (default: spec.yaml)"
    )
    parser.add_argument(
        "-r", "--results_dir", metavar="DIR", default="results", help="results folder (default: results)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the file")


def main(options: argparse.Namespace) -> int:
    target = Path(options.output)
    if target.exists() and not options.force:
        raise UserError(f"{target} exists; use --force to overwrite it")
    if not os.path.exists(options.dataset):
        raise MissingData(f"{options.dataset} does not exist; expected the folder of a dataset")
    from rtdetr_tool.files import write_atomically
    from rtdetr_tool.log import set_up_console
    from rtdetr_tool.workflows.new_spec import inspect, propose, spec_yaml

    set_up_console()
    with Steps("Inspecting the dataset", {"reading annotations and image sizes": 1}) as steps:
        steps.begin("reading annotations and image sizes")
        inspected = inspect(options.dataset)
    proposals = propose(inspected, options.results_dir)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, spec_yaml(proposals, f"Trains {inspected.detector} on {options.dataset}."))
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from None
    command_output().results = [asdict(proposal) for proposal in proposals]
    for proposal in proposals:
        if proposal.reason:
            logger.info("%s: %s (%s)", proposal.name, proposal.value, proposal.reason)
    logger.info(
        "Wrote %s. Check the data with `rtdetr validate_data -e %s`, then run `rtdetr train -e %s`", *[target] * 3
    )
    return 0
