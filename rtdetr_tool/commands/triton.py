"""`rtdetr triton`: write a model repository for NVIDIA's Triton Inference Server."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from rtdetr_tool.checkpoints.weights_exist import check_exists
from rtdetr_tool.json_output import command_output

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="ONNX file or TensorRT engine with its .json")
    parser.add_argument("repository", metavar="REPOSITORY", help="folder of the model repository; created if missing")
    parser.add_argument("--name", help="name of the model in the repository (default: the name of the file)")
    parser.add_argument("--max-batch", type=_positive, metavar="N", help="largest batch that the server forms")
    parser.add_argument(
        "--queue-delay",
        type=_positive,
        default=1000,
        metavar="US",
        help="microseconds that a request may wait for others to join its batch (default: 1000)",
    )
    parser.add_argument("--cpu", action="store_true", help="run the model on the CPU")
    parser.add_argument("--force", action="store_true", help="overwrite the model in the repository")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def main(options: argparse.Namespace) -> int:
    check_exists(options.model)
    from rtdetr_tool.log import set_up_console
    from rtdetr_tool.workflows.triton import Serving, read_served_model, write_repository

    set_up_console()
    path = Path(options.model)
    serving = Serving(options.name or path.stem, options.max_batch, options.queue_delay, options.cpu)
    folder = write_repository(read_served_model(path), serving, Path(options.repository), options.force)
    command_output().results = {"name": serving.name, "folder": str(folder)}
    logger.info("Wrote %s. Start the server with: tritonserver --model-repository=%s", folder, options.repository)
    return 0
