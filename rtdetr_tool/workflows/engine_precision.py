"""The graph of an engine in FP32, FP16 and INT8.

Precision lives in the graph, for every version of TensorRT alike: FP16 is a graph with casts, INT8 one with Q/DQ nodes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rtdetr_tool.catalog import Layout
from rtdetr_tool.errors import UserError
from rtdetr_tool.files import write_atomically
from rtdetr_tool.formats.graph_tensors import to_graph
from rtdetr_tool.formats.images import UNSCORED_FIRST, ImageSource, image_source_of
from rtdetr_tool.formats.precision import (
    LayerRules,
    PrecisionGraph,
    audit_precision,
    to_int8,
    to_mixed_fp16,
)
from rtdetr_tool.spec import MISSING, LoadedSpec
from rtdetr_tool.status import current_status
from rtdetr_tool.workflows.engine import Source

logger = logging.getLogger(__name__)

AUDIT_IMAGES, CALIBRATION_IMAGES = 32, 100  # where the spec does not say how many
FEW_IMAGES = 32  # below this, INT8 ranges depend on which images were taken


@dataclass
class Variant:
    """The graph in one precision, and its score where there is a validation set."""

    precision: str
    file: Path
    graph: PrecisionGraph | None = None  # None: the ONNX file as it was given
    scores: dict[str, float | None] | None = None


@dataclass(frozen=True)
class CalibrationImages:
    """A fixed choice of images that can be gone through several times."""

    source: ImageSource
    count: int
    batch: int
    layout: Layout

    def feeds(self) -> Iterator[np.ndarray]:
        """Parts [N, 3, H, W] float32 as the graph takes them."""
        for part in self.source.batches(self.count, self.batch):
            yield to_graph(part, self.layout).numpy()


def calibration_images(source: Source, loaded: LoadedSpec) -> CalibrationImages | None:
    """From `calibration.cal_image_dir`, else from the spec's data; None where there are none and FP16 does without.

    Raises:
        UserError: too few of them, or none for INT8.
    """
    section = loaded.spec.gen_trt_engine.tensorrt
    calibration, needed = section.calibration, section.data_type == "INT8"
    given = ((loaded.explicit.get("gen_trt_engine") or {}).get("tensorrt") or {}).get("calibration") or {}
    folders = None if calibration.cal_image_dir in (MISSING, [], None) else list(calibration.cal_image_dir)
    augmentation = source.spec.dataset.augmentation
    found = image_source_of(
        source.spec.dataset, folders, augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio, UNSCORED_FIRST
    )
    name = "gen_trt_engine.tensorrt.calibration.cal_image_dir"
    if found is None:
        if needed:
            raise UserError(f"{name}: INT8 needs calibration images; name one or more folders of images")
        logger.warning("%s is not set: without images the precision of each node is chosen by its kind alone", name)
        return None
    count = calibration.cal_batches * calibration.cal_batch_size
    if "cal_batches" in given and len(found.paths) < count:
        raise UserError(
            f"gen_trt_engine.tensorrt.calibration: cal_batches x cal_batch_size is {count}, but {found.origin} hold "
            f"{len(found.paths)} images. Lower cal_batches, or name more folders in cal_image_dir."
        )
    if "cal_batches" not in given:
        count = min(CALIBRATION_IMAGES if needed else AUDIT_IMAGES, len(found.paths))
    if needed and count < FEW_IMAGES:
        logger.warning("INT8 is calibrated on %d images; some hundred give steadier ranges (cal_batches)", count)
    logger.info("Calibration: %d images of %s", count, folders or found.origin)
    return CalibrationImages(found, count, calibration.cal_batch_size, source.file.interface.layout)


def make_variants(
    source: Source, rules: LayerRules, loaded: LoadedSpec, folder: Path
) -> tuple[list[Variant], dict[str, Any]]:
    """FP32, then FP16, then INT8, as far as asked for, each written below `folder`; and the report about them."""
    section = loaded.spec.gen_trt_engine.tensorrt
    variants = [Variant("FP32", source.file.path)]
    report: dict[str, Any] = {"onnx_file": str(source.file.path), "data_type": section.data_type}
    if section.data_type == "FP32":
        if rules.rules:
            logger.warning("layers_precision has no effect: data_type is FP32")
        return variants, report
    images = calibration_images(source, loaded)
    audit = None
    if images is not None:
        current_status().running("Measuring the precision that each node needs.")
        audit = audit_precision(source.file.model, images.feeds())
        report["audit"] = audit.to_dict()
    without_int8 = LayerRules(tuple(rule for rule in rules.rules if rule.precision != "int8"))
    mixed = to_mixed_fp16(source.file.model, audit, without_int8 if section.data_type == "INT8" else rules)
    variants.append(written("FP16", mixed, source, folder))
    report["fp16"] = mixed.to_dict()
    if section.data_type == "INT8" and images is not None:
        current_status().running("Calibrating INT8.")
        cache = section.calibration.cal_cache_file
        quantized = to_int8(
            source.file.model, images.feeds(), rules, None if cache in (MISSING, None, "") else Path(cache), audit
        )
        variants.append(written("INT8", quantized, source, folder))
        report["int8"] = quantized.to_dict()
    return variants, report


def written(precision: str, graph: PrecisionGraph, source: Source, folder: Path) -> Variant:
    file = folder / f"{source.file.path.stem}_{precision.lower()}.onnx"
    content = graph.model.SerializeToString()
    write_atomically(file, content)
    logger.info("%s: %s, %.1f MB, %d casts", precision, file, len(content) / 1e6, graph.casts)
    for note in graph.notes:
        logger.warning("%s: %s", precision, note)
    return Variant(precision, file, graph)
