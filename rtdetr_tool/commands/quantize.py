"""`rtdetr quantize`: convert a trained detector to INT8 or FP8, and score it before the file is written."""

from __future__ import annotations

import logging

from rtdetr_tool.commands.tables import show_kept, show_scores
from rtdetr_tool.json_output import command_output
from rtdetr_tool.spec import LoadedSpec
from rtdetr_tool.workflows.engine_precision import Variant
from rtdetr_tool.workflows.quantize import quantize

logger = logging.getLogger(__name__)


def run(loaded: LoadedSpec) -> None:
    result = quantize(loaded, on_scored=show)
    command_output().results = {**result.report, "file": str(result.path)}
    name, layers = result.choice.name, result.graph.quantized
    logger.info("Wrote %s: %s in %d layers, %.1f MB", result.path, name, layers, result.path.stat().st_size / 1e6)
    logger.info("Use it as evaluate.checkpoint, inference.checkpoint or gen_trt_engine.onnx_file")


def show(variants: list[Variant]) -> None:
    """Print the layers that stay in FP32, and the scores."""
    for variant in variants:
        if variant.graph is not None and variant.graph.kept:
            show_kept(variant.precision, variant.graph)
    show_scores(variants)
