"""Export a detector to ONNX or TFLite; the file is written only if it agrees with PyTorch on real images."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rtdetr_tool.catalog import LAYOUTS
from rtdetr_tool.checkpoints.metadata import build_metadata
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.errors import UserError
from rtdetr_tool.files import write_atomically
from rtdetr_tool.formats.description import describe
from rtdetr_tool.formats.export_model import ExportFeatures, ExportModel, lacks_background
from rtdetr_tool.formats.onnx.deepstream import write_side_files
from rtdetr_tool.formats.opening import OpenedDetector
from rtdetr_tool.formats.tflite.export import check_installed
from rtdetr_tool.formats.verification import reference_on_pictures
from rtdetr_tool.spec import ExportSpec
from rtdetr_tool.status import current_status
from rtdetr_tool.version import package_version
from rtdetr_tool.workflows.export_files import Order, write_onnx, write_tflite

logger = logging.getLogger(__name__)

SUFFIXES = {"onnx": ".onnx", "tflite": ".tflite"}


def export_detector(
    opened: OpenedDetector, section: ExportSpec, conf_threshold: float, calibration: np.ndarray | None = None
) -> Path:
    """Write a detector as `section` says; the detector stays as it is. The file is returned.

    Args:
        conf_threshold: smallest score that DeepStream shows.
        calibration: pictures [N, 3, H, W] in place of `export.tflite.calibration`.
    """
    check_section(section)
    target, device = check_target(section), choose_device(section)
    order = order_of(opened, section, target, device)
    start = time.perf_counter()
    if section.format == "tflite":
        given = section.tflite.calibration if calibration is None else calibration
        content = write_tflite(order, opened.spec.dataset, given)
    else:
        content = write_onnx(order)
    content["seconds"] = round(time.perf_counter() - start, 2)
    write_atomically(Path(section.results_dir) / "export.json", json.dumps(content, indent=2) + "\n")
    if section.serialize_nvdsinfer:
        if opened.class_map is None:
            raise UserError("export.serialize_nvdsinfer: the checkpoint does not know its classes")
        letterbox, num_select = opened.spec.dataset.augmentation.preserve_aspect_ratio, opened.spec.model.num_select
        write_side_files(target, opened.class_map, order.size, letterbox, num_select, conf_threshold)
    current_status().running("Export finished.", kpi=kpi_of(content))
    logger.info(
        "%s: %.1f MB, %.1f s, batch %s, input %d x %d",
        target, content["bytes"] / 1e6, content["seconds"], content["batch"], *order.size,
    )  # fmt: skip
    return target


def order_of(opened: OpenedDetector, section: ExportSpec, target: Path, device: torch.device) -> Order:
    """The detector wrapped as the section wants it, and pictures to compare on."""
    augmentation = opened.spec.dataset.augmentation
    sides = {section.input_height, section.input_width} - {None}
    if augmentation.preserve_aspect_ratio and len(sides) > 1:
        raise UserError(
            f"export.input_height is {section.input_height}, input_width {section.input_width}; with "
            "dataset.augmentation.preserve_aspect_ratio they must be equal"
        )
    size = input_size(augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio)
    static = opened.detector.static_batch
    check_batch(section, static)
    batch = None if section.batch_size == -1 else section.batch_size
    if section.format == "tflite":
        batch = batch or 1
    layout, detector = LAYOUTS[section.layout], opened.detector
    added = lacks_background(layout, opened.spec.model.family, opened.class_map) and not section.backbone_only
    if section.backbone_only:
        model = ExportFeatures(detector, layout, size)
    else:
        num_select = opened.spec.model.num_select if section.include_postprocess else None
        model = ExportModel(detector, num_select, layout, added)
    notes = section.notes or notes_of(opened)
    description = describe(metadata_of(opened), size, notes, section.layout, added)
    reference = reference_on_pictures(model.to(device).eval().detector, opened.spec.dataset, size, batch)
    return Order(section, target, model, size, batch, description, reference)


# Input


def check_section(section: ExportSpec) -> None:
    """UserError for settings that contradict each other, and for an extra that is missing."""
    raw = section.layout != "tao" or section.backbone_only or section.format != "onnx"
    for name in ("include_postprocess", "serialize_nvdsinfer"):
        if getattr(section, name) and raw:
            raise UserError(
                f"export.{name}: goes with format onnx, layout tao and the whole detector only (export.format is "
                f"{section.format}, layout {section.layout}, backbone_only {section.backbone_only})"
            )
    if section.format == "onnx" and section.tflite.data_type != "FP32":
        raise UserError(
            f"export.tflite.data_type: {section.tflite.data_type} goes with export.format tflite; the precision of "
            "engines and their ONNX graphs is gen_trt_engine.tensorrt.data_type"
        )
    if section.format == "tflite":
        if section.backbone_only and section.tflite.data_type != "FP32":
            raise UserError(
                f"export.tflite.data_type: {section.tflite.data_type} is not supported with backbone_only; use FP32 "
                "(lower precision is measured on detections)"
            )
        check_installed()


def check_target(section: ExportSpec) -> Path:
    """The file to write, in a folder that exists."""
    target, suffix = Path(section.onnx_file), SUFFIXES[section.format]
    if target.suffix.lower() not in (".onnx", suffix):
        raise UserError(f"export.onnx_file: {target} must end in {suffix}")
    if target.suffix.lower() != suffix:
        target = target.with_suffix(suffix)
    if target.is_dir():
        raise UserError(f"export.onnx_file: {target} is a directory")
    if target.exists() and not section.overwrite:
        raise UserError(f"export.onnx_file: {target} exists already; set export.overwrite=true, or choose another name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"export.onnx_file: {target.parent} cannot be made: {error.strerror}") from None
    return target


def check_batch(section: ExportSpec, static_batch: int | None) -> None:
    if static_batch is not None and section.batch_size != static_batch:
        raise UserError(
            f"export.batch_size: {section.batch_size} is invalid; expected {static_batch}, because this detector "
            "has a frozen foundation model (model.frozen_fm)"
        )


def choose_device(section: ExportSpec) -> torch.device:
    """The GPU that is asked for where there is one; the graph is the same."""
    if section.on_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    if section.gpu_id >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(f"export.gpu_id is {section.gpu_id}; this machine has {found} GPU(s), numbered from 0")
    return torch.device("cuda", section.gpu_id)


def metadata_of(opened: OpenedDetector) -> dict:
    """What the file will say: the checkpoint's own words with the spec as it holds now."""
    from rtdetr_tool.spec import spec_to_dict

    stored = dict(opened.meta) if opened.meta is not None else {}
    classes = opened.class_map.to_list() if opened.class_map is not None else []
    return build_metadata(package_version(), spec_to_dict(opened.spec), classes, stored.get("weights", "raw"))


def notes_of(opened: OpenedDetector) -> str | None:
    """`train.notes` of the run that the checkpoint comes from."""
    stored = (opened.meta or {}).get("spec") or {}
    return (stored.get("train") or {}).get("notes")


def kpi_of(content: dict[str, Any]) -> dict[str, float]:
    """The largest differences, for the status line."""
    names = {"score": "score_difference", "box": "box_difference", "relative": "feature_difference"}
    worst = {
        kpi: max(each[name] for each in content["differences"])
        for name, kpi in names.items()
        if name in content["differences"][0]
    }
    return {**worst, **{name: content[name] for name in ("nodes", "cost") if name in content}}
