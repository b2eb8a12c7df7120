"""Quantize a trained detector: select layers, number formats and images, and write the file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rtdetr_tool.data.build_sources import pixel_format_of
from rtdetr_tool.errors import UserError
from rtdetr_tool.files import write_atomically
from rtdetr_tool.formats.images import UNSCORED_FIRST, image_source_of
from rtdetr_tool.formats.onnx.file import parsed, read_onnx, replacing_onnx
from rtdetr_tool.formats.opening import format_of, open_detector
from rtdetr_tool.formats.precision import PrecisionGraph, is_quantized, precision_name, to_quantized
from rtdetr_tool.formats.precision.calibration import Plan
from rtdetr_tool.formats.precision.graph import Graph
from rtdetr_tool.formats.resolve import resolve
from rtdetr_tool.formats.table import FORMATS
from rtdetr_tool.progress import Steps
from rtdetr_tool.spec import LoadedSpec
from rtdetr_tool.spec.required import results_folder
from rtdetr_tool.workflows.engine import Source
from rtdetr_tool.workflows.engine_precision import CalibrationImages, Variant
from rtdetr_tool.workflows.engine_scores import ScoreGate, score_variants
from rtdetr_tool.workflows.export import export_detector
from rtdetr_tool.workflows.quantize_layers import LayerChoice, choose_layers, methods_of, notes_without_effect

logger = logging.getLogger(__name__)

FILE_NAME = "quantized_model.onnx"
OPSET = 19  # of the graph that a checkpoint is exported to; the first with FP8
BATCH = 4  # calibration images per step
GATE = ScoreGate(
    "quantize", "Nothing was written. Skip layers (quantize.skip_names), calibrate on more images, or raise the limit."
)
READING, QUANTIZING, SCORING = "reading the model", "quantizing", "scoring"


@dataclass
class Quantized:
    """The written file, its graph, the selected layers, and the content of quantize.json."""

    path: Path
    graph: PrecisionGraph
    choice: LayerChoice
    report: Mapping[str, Any]


def quantize(loaded: LoadedSpec, on_scored: Callable[[list[Variant]], None] = lambda variants: None) -> Quantized:
    """Write the quantized ONNX file of `quantize.model_path` if it scores well enough.

    Args:
        on_scored: called with the original and the quantized graph before the scores decide.

    Raises:
        UserError: the section is invalid, the file is quantized already, or there are no calibration images.
        RtdetrError: the quantized graph does not run, or loses more than `quantize.max_score_drop`.
    """
    methods = methods_of(loaded)  # before anything slow
    with Steps("Quantizing", {READING: 3, QUANTIZING: 4, SCORING: 3}) as steps:
        return _quantize(loaded, methods, on_scored, steps)


def _quantize(
    loaded: LoadedSpec, methods: Sequence[str], on_scored: Callable[[list[Variant]], None], steps: Steps
) -> Quantized:
    section = loaded.spec.quantize
    folder = results_folder(section, "quantize")
    steps.begin(READING)
    source = open_graph(loaded, folder)
    steps.begin(QUANTIZING)
    choice = choose_layers(Graph(source.file.model), section)
    for note in notes_without_effect(loaded.spec, choice):
        logger.warning("%s", note)
    images = calibration_images(source, loaded) if choice.needs_images else None
    plan = Plan(requested=choice.requested, methods=methods, fixed=choice.observers, remedy="quantize.skip_names")
    graph = to_quantized(source.file.model, choice.formats, _feeds(images), plan)
    for note in graph.notes:
        logger.warning("%s", note)

    steps.begin(SCORING)
    target = folder / FILE_NAME
    with replacing_onnx(target, graph.model) as temporary:
        name = choice.name
        variants = [Variant(precision_name(source.file.model), source.file.path), Variant(name, temporary, graph)]
        score_variants(variants, source, section.score_images, GATE)
        report = report_of(source, graph, choice, variants, section.mode)
        write_atomically(folder / "quantize.json", json.dumps(report, indent=2) + "\n")
        on_scored(variants)
        GATE.check(variants, section.max_score_drop)
    return Quantized(target, graph, choice, report)


def open_graph(loaded: LoadedSpec, folder: Path) -> Source:
    """The ONNX file to quantize; a checkpoint is exported to `folder` first, as the spec's `export` section says."""
    path = loaded.spec.quantize.model_path or ""
    row = format_of(path)
    if row.trainable:
        export = replace(
            loaded.spec.export,
            checkpoint=path,
            onnx_file=str(folder / "model.onnx"),
            format="onnx",
            overwrite=True,
            backbone_only=False,
            results_dir=str(folder),
            opset_version=max(OPSET, loaded.spec.export.opset_version),
        )
        opened = open_detector(path, loaded)
        path = str(export_detector(opened, export, loaded.spec.inference.conf_threshold))
    elif row is not FORMATS["onnx"]:
        raise UserError(
            f"quantize.model_path: {path} is invalid; expected a checkpoint or an ONNX file (.onnx) of `rtdetr export`"
        )
    file = parsed(path, read_onnx(path))
    if is_quantized(file.model):
        raise UserError(f"quantize.model_path: {path} is already quantized; expected a checkpoint or an FP32 ONNX file")
    spec, class_map = resolve(file.recorded, loaded)
    return Source(file, spec, class_map)


def calibration_images(source: Source, loaded: LoadedSpec) -> CalibrationImages:
    """Images of `dataset.quant_calibration_data_sources`, or else of other datasets; UserError if there are none."""
    dataset = source.spec.dataset
    folder = (loaded.spec.dataset.quant_calibration_data_sources or {}).get("image_dir")
    size, letterbox = dataset.augmentation.eval_spatial_size, dataset.augmentation.preserve_aspect_ratio
    pixels = pixel_format_of(source.spec)
    images = image_source_of(dataset, [folder] if folder else None, size, letterbox, UNSCORED_FIRST, pixels)
    if images is None:
        raise UserError(
            "dataset.quant_calibration_data_sources: required by quantize.mode=static_ptq, but not set; expected "
            "image_dir, a folder of images (the training images are used if dataset.train_data_sources is set)"
        )
    count = min(loaded.spec.quantize.calibration_images, len(images.paths))
    logger.info("Calibration: %d images of %s", count, folder or images.origin)
    if count < 32:
        logger.warning("Calibrating on only %d images; several hundred give more stable ranges", count)
    batch = source.file.interface.batch or BATCH
    return CalibrationImages(images, count, batch, source.file.interface.layout)


def _feeds(images: CalibrationImages | None) -> Iterator[np.ndarray]:
    return iter(()) if images is None else images.feeds()


def report_of(
    source: Source, graph: PrecisionGraph, choice: LayerChoice, variants: list[Variant], mode: str | None
) -> Mapping[str, Any]:
    """The content of quantize.json."""
    kept = {node.name for node in graph.kept}
    return {
        "model": str(source.file.path),
        "mode": mode,
        "layers": {name: choice.describe(name) for name in choice.formats if name not in kept},
        "skipped": {**choice.skipped, **{node.name: node.reason for node in graph.kept}},
        "calibration": graph.calibration,
        "scores": {variant.precision: variant.scores for variant in variants},
    }
