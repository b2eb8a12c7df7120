"""Build the graphs of an engine in FP32, FP16 and INT8.

Precision is part of the graph for all versions of TensorRT: FP16 graphs have casts, INT8 graphs Q/DQ nodes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from rtdetr_tool.catalog import Layout
from rtdetr_tool.data.build_sources import pixel_format_of
from rtdetr_tool.errors import UserError
from rtdetr_tool.files import write_atomically
from rtdetr_tool.formats.graph_tensors import to_graph
from rtdetr_tool.formats.images import UNSCORED_FIRST, ImageSource, image_source_of
from rtdetr_tool.formats.precision import (
    LayerRules,
    PrecisionGraph,
    audit_precision,
    precision_name,
    to_int8,
    to_mixed_fp16,
)
from rtdetr_tool.progress import track
from rtdetr_tool.spec import MISSING, LoadedSpec
from rtdetr_tool.status import current_status
from rtdetr_tool.workflows.engine import Source

logger = logging.getLogger(__name__)

AUDIT_IMAGES, CALIBRATION_IMAGES = 32, 100  # defaults if the spec does not set a number
FEW_IMAGES = 32  # below this number, INT8 ranges depend on the selection of images


class Scores(TypedDict):
    """Of a graph on validation images in ONNX Runtime, as in precision.json; a score without objects is None."""

    mAP: float | None
    mAP50: float | None
    other_mAP: dict[str, float | None]  # of masks or keypoints, if the model predicts them
    images: int
    model_ms_per_image: float
    bytes: int


@dataclass
class Variant:
    """The graph in one precision, and its scores if there is a validation set."""

    precision: str
    file: Path
    graph: PrecisionGraph | None = None  # None: the original ONNX file
    scores: Scores | None = None


@dataclass(frozen=True)
class CalibrationImages:
    """A fixed selection of images that can be iterated several times."""

    source: ImageSource
    count: int
    batch: int
    layout: Layout

    def feeds(self) -> Iterator[np.ndarray]:
        """Batches [N, C, H, W] float32 of inputs of the graph."""
        parts = self.source.batches(self.count, self.batch)
        for part in track(parts, "Running calibration images", -(-self.count // self.batch), "batches"):
            yield to_graph(part, self.layout).numpy()


def calibration_images(source: Source, loaded: LoadedSpec) -> CalibrationImages | None:
    """Images of `calibration.cal_image_dir`, or else of the spec's datasets; None if there are none for FP16.

    Raises:
        UserError: too few images, or none for INT8.
    """
    section = loaded.spec.gen_trt_engine.tensorrt
    calibration, needed = section.calibration, section.data_type == "INT8"
    given = ((loaded.explicit.get("gen_trt_engine") or {}).get("tensorrt") or {}).get("calibration") or {}
    folders = None if calibration.cal_image_dir in (MISSING, [], None) else list(calibration.cal_image_dir)
    augmentation = source.spec.dataset.augmentation
    images = image_source_of(
        source.spec.dataset,
        folders,
        augmentation.eval_spatial_size,
        augmentation.preserve_aspect_ratio,
        UNSCORED_FIRST,
        pixel_format_of(source.spec),
    )
    name = "gen_trt_engine.tensorrt.calibration.cal_image_dir"
    if images is None:
        if needed:
            raise UserError(f"{name}: required for INT8, but not set; expected one or more folders of images")
        logger.warning("%s is not set; choosing the precision of each node by its type only", name)
        return None
    count = calibration.cal_batches * calibration.cal_batch_size
    if "cal_batches" in given and len(images.paths) < count:
        raise UserError(
            f"gen_trt_engine.tensorrt.calibration: cal_batches x cal_batch_size is {count}, but there are only "
            f"{len(images.paths)} images in {images.origin}. Lower cal_batches, or add folders to cal_image_dir."
        )
    if "cal_batches" not in given:
        count = min(CALIBRATION_IMAGES if needed else AUDIT_IMAGES, len(images.paths))
    if needed and count < FEW_IMAGES:
        logger.warning(
            "Calibrating INT8 on only %d images; several hundred give more stable ranges (cal_batches)", count
        )
    logger.info("Calibration: %d images of %s", count, folders or images.origin)
    return CalibrationImages(images, count, calibration.cal_batch_size, source.file.interface.layout)


def build_variants(
    source: Source, rules: LayerRules, loaded: LoadedSpec, folder: Path
) -> tuple[list[Variant], dict[str, Any]]:
    """Write the FP16 and INT8 graphs up to the requested precision to `folder`; return all graphs and a report."""
    section = loaded.spec.gen_trt_engine.tensorrt
    original = precision_name(source.file.model)
    variants = [Variant(original, source.file.path)]
    report: dict[str, Any] = {"onnx_file": str(source.file.path), "data_type": section.data_type}
    if section.data_type == "FP32":
        if rules.rules:
            logger.warning("Ignoring layers_precision, because data_type is FP32")
        return variants, report
    images, stem = calibration_images(source, loaded), source.file.path.stem
    audit = None
    if images is not None:
        current_status().running("Measuring the precision that each node needs.")
        audit = audit_precision(source.file.model, images.feeds())
        report["audit"] = audit.to_dict()
    without_int8 = LayerRules(tuple(rule for rule in rules.rules if rule.precision != "int8"))
    mixed = to_mixed_fp16(source.file.model, audit, without_int8 if section.data_type == "INT8" else rules)
    variants.append(write_variant(_name_of_half(original), mixed, folder / f"{stem}_fp16.onnx"))
    report["fp16"] = mixed.to_dict()
    if section.data_type == "INT8" and images is not None:
        current_status().running("Calibrating INT8.")
        cache = section.calibration.cal_cache_file
        quantized = to_int8(
            source.file.model, images.feeds(), rules, None if cache in (MISSING, None, "") else Path(cache), audit
        )
        variants.append(write_variant("INT8", quantized, folder / f"{stem}_int8.onnx"))
        report["int8"] = quantized.to_dict()
    return variants, report


def _name_of_half(original: str) -> str:
    """The name of the FP16 graph of a file; what is quantized stays quantized, and FP16 is converted further."""
    if "FP16" in original:
        return f"{original}, converted"
    return "FP16" if original == "FP32" else f"{original} and FP16"


def write_variant(precision: str, graph: PrecisionGraph, file: Path) -> Variant:
    content = graph.model.SerializeToString()
    write_atomically(file, content)
    logger.info("%s: %s, %.1f MB, %d casts", precision, file, len(content) / 1e6, graph.casts)
    for note in graph.notes:
        logger.warning("%s: %s", precision, note)
    return Variant(precision, file, graph)
