"""`rtdetr convert`: convert any supported checkpoint to ours, or to the files of the programs they come from."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from rtdetr_tool.checkpoints.weights_exist import check_exists
from rtdetr_tool.json_output import command_output
from rtdetr_tool.progress import Steps
from rtdetr_tool.workflows.convert import LAYOUTS, OTHER_NAMES, SUFFIXES, check_target, metadata_of, write_weights

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="IN",
        help="checkpoint of this tool, NVIDIA TAO, the official RT-DETR (v1, v2), Roboflow's RF-DETR, or transformers "
        "(file or directory)",
    )
    parser.add_argument(
        "target", metavar="OUT", help=f"file to write ({', '.join(SUFFIXES)}), or a directory for transformers"
    )
    parser.add_argument(
        "--to",
        choices=(*LAYOUTS, *OTHER_NAMES),
        help="program that OUT is for; by default rtdetr for a file and transformers for a directory",
    )
    parser.add_argument("--classes", metavar="FILE", help="class names, one per line; line i (from 0) is class index i")
    parser.add_argument(
        "-e",
        "--experiment_spec_file",
        metavar="SPEC",
        help="spec with fields that IN does not store (heads, queries, size)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that override those of the spec")


def main(options: argparse.Namespace) -> int:
    from rtdetr_tool.log import set_up_console
    from rtdetr_tool.spec import read_spec

    target = Path(options.target)
    layout = check_target(target, options.to, options.force)
    check_exists(options.source)
    loaded = read_spec(options.experiment_spec_file, options.overrides, None)
    set_up_console()

    from rtdetr_tool.formats.opening import open_detector

    with Steps("Converting", {"reading": 6, "writing": 4}) as steps:
        steps.begin("reading")
        opened = open_detector(options.source, loaded)
        meta = metadata_of(opened, options.classes)
        steps.begin("writing")
        notes = write_weights(opened, meta, target, layout)
    for note in notes:
        logger.warning(note)
    command_output().results = {
        "target": str(target),
        "layout": layout,
        "named_classes": len(meta["classes"]),
        "classes": opened.spec.dataset.num_classes,
        "notes": notes,
    }
    named = f"{len(meta['classes'])} of {opened.spec.dataset.num_classes} classes named"
    logger.info("Wrote %s (%s, %s)", target, layout, named)
    return 0
