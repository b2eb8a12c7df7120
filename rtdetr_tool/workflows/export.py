"""Export a detector to a format of `formats.table`; the file is written only if it agrees with PyTorch."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rtdetr_tool.catalog import LAYOUTS
from rtdetr_tool.checkpoints.metadata import build_metadata
from rtdetr_tool.data.build_sources import pixel_format_of
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.errors import UserError
from rtdetr_tool.files import write_atomically
from rtdetr_tool.formats.description import describe
from rtdetr_tool.formats.export_model import ExportFeatures, ExportModel, lacks_background
from rtdetr_tool.formats.export_request import ExportRequest, export_module
from rtdetr_tool.formats.onnx.deepstream import COLOR_FORMATS, write_side_files
from rtdetr_tool.formats.opening import OpenedDetector
from rtdetr_tool.formats.table import FORMATS, FULL, exported_formats
from rtdetr_tool.formats.verification import build_reference
from rtdetr_tool.spec import ExportSpec, spec_to_dict
from rtdetr_tool.spec.required import results_folder
from rtdetr_tool.status import current_status
from rtdetr_tool.version import package_version

logger = logging.getLogger(__name__)


def export_detector(
    opened: OpenedDetector, section: ExportSpec, conf_threshold: float, calibration: NDArray[np.generic] | None = None
) -> Path:
    """Write a detector to a file as `section` says, and return its path; the detector does not change.

    Args:
        conf_threshold: minimum score that DeepStream shows.
        calibration: images [N, C, H, W] to use instead of the format's `calibration`.
    """
    check_section(section)
    check_channels(section, opened.detector.num_channels)
    target, device = check_target(section), choose_device(section)
    request = build_request(opened, section, target, device, calibration)
    start = time.perf_counter()
    content = export_module(request.format).export(request)
    content["seconds"] = round(time.perf_counter() - start, 2)
    write_atomically(results_folder(section, "export") / "export.json", json.dumps(content, indent=2) + "\n")
    if section.serialize_nvdsinfer:
        if opened.class_map is None:
            raise UserError("export.serialize_nvdsinfer: the checkpoint does not name its classes")
        letterbox, num_select = opened.spec.dataset.augmentation.preserve_aspect_ratio, opened.spec.model.num_select
        channels = opened.detector.num_channels
        write_side_files(target, opened.class_map, request.size, letterbox, num_select, conf_threshold, channels)
    current_status().running("Export finished.", kpi=kpi_of(content))
    logger.info(
        "%s: %.1f MB, %.1f s, batch %s, input %d x %d",
        target, content["bytes"] / 1e6, content["seconds"], content["batch"], *request.size,
    )  # fmt: skip
    return target


def build_request(
    opened: OpenedDetector,
    section: ExportSpec,
    target: Path,
    device: torch.device,
    calibration: NDArray[np.generic] | None = None,
) -> ExportRequest:
    """The detector wrapped as the section says, with the reference that its file is verified against."""
    augmentation = opened.spec.dataset.augmentation
    sides = {section.input_height, section.input_width} - {None}
    if augmentation.preserve_aspect_ratio and len(sides) > 1:
        raise UserError(
            f"export.input_height is {section.input_height}, input_width {section.input_width}; they must be equal "
            "with dataset.augmentation.preserve_aspect_ratio"
        )
    size = input_size(augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio)
    static = opened.detector.static_batch
    check_batch(section, static)
    row = FORMATS[section.format]
    batch = section.batch_size if section.batch_size != -1 else None if row.dynamic_batch else 1
    layout, detector = LAYOUTS[section.layout], opened.detector
    added = lacks_background(layout, opened.spec.model.family, opened.class_map) and not section.backbone_only
    model: ExportModel | ExportFeatures
    if section.backbone_only:
        model = ExportFeatures(detector, layout, size)
    else:
        num_select = opened.spec.model.num_select if section.include_postprocess else None
        model = ExportModel(detector, num_select, layout, added)
    notes = section.notes or notes_of(opened)
    description = describe(metadata_of(opened), size, notes, section.layout, added)
    pixels = pixel_format_of(opened.spec)
    reference = build_reference(model.to(device).eval().detector, opened.spec.dataset, size, batch, pixels)
    dataset = opened.spec.dataset
    return ExportRequest(row, section, target, model, size, batch, description, reference, dataset, calibration, pixels)


# Input


def check_section(section: ExportSpec) -> None:
    """UserError for settings that contradict each other, and for missing packages."""
    row = FORMATS[section.format]
    whole = section.layout == "tao" and not section.backbone_only
    for name, supported in (("include_postprocess", row.detection_outputs), ("serialize_nvdsinfer", row.deepstream)):
        if getattr(section, name) and not (whole and supported):
            raise UserError(
                f"export.{name}: requires format onnx, layout tao and the whole detector, but export.format is "
                f"{section.format}, layout {section.layout}, backbone_only {section.backbone_only}"
            )
    for other in exported_formats():
        precision = getattr(section, other.name).data_type if len(other.precisions) > 1 else FULL
        if precision == FULL:
            continue
        if other is not row:
            raise UserError(
                f"export.{other.name}.data_type: {precision} requires export.format={other.name}; the precision of "
                "engines and their ONNX graphs is gen_trt_engine.tensorrt.data_type"
            )
        if section.backbone_only:
            raise UserError(
                f"export.{other.name}.data_type: {precision} is not supported with backbone_only; use {FULL} "
                "(the effect of lower precision is measured on detections)"
            )
    row.to_export.require(f"export.format={row.name}")


def check_channels(section: ExportSpec, channels: int) -> None:
    """UserError for settings that contradict the number of image channels."""
    if section.input_channel not in (3, channels):  # 3 is the default
        raise UserError(
            f"export.input_channel: {section.input_channel} is invalid; expected {channels}, the model.num_channels of "
            "the checkpoint"
        )
    if section.serialize_nvdsinfer and channels not in COLOR_FORMATS:
        raise UserError(
            f"export.serialize_nvdsinfer: DeepStream has RGB or gray images, but model.num_channels is {channels}; set "
            "it to false"
        )


def check_target(section: ExportSpec) -> Path:
    """The file to write, in a folder that exists; a path that ends in .onnx gets the suffix of the format."""
    row = FORMATS[section.format]
    target, suffix = Path(section.onnx_file), row.suffix
    if target.suffix.lower() not in (FORMATS["onnx"].suffix, suffix):
        raise UserError(f"export.onnx_file: {target} is invalid; expected a file that ends in {suffix}")
    if target.suffix.lower() != suffix:
        target = target.with_suffix(suffix)
    if target.is_dir() and not (row.directory and all((target / name).exists() for name in row.directory)):
        raise UserError(f"export.onnx_file: {target} is a directory; expected a file")
    if target.exists() and not section.overwrite:
        raise UserError(f"export.onnx_file: {target} already exists; set export.overwrite=true, or choose another name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"export.onnx_file: {target.parent} cannot be created: {error.strerror}") from None
    return target


def check_batch(section: ExportSpec, static_batch: int | None) -> None:
    if static_batch is not None and section.batch_size != static_batch:
        raise UserError(
            f"export.batch_size: {section.batch_size} is invalid; expected {static_batch}, because this detector "
            "has a frozen foundation model (model.frozen_fm)"
        )


def choose_device(section: ExportSpec) -> torch.device:
    """The requested GPU if there is one; the graph is the same."""
    if section.on_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    if section.gpu_id >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"export.gpu_id: {section.gpu_id} is invalid; expected 0 to {count - 1}")
    return torch.device("cuda", section.gpu_id)


def metadata_of(opened: OpenedDetector) -> dict[str, Any]:
    """Metadata as in a checkpoint, with the spec that applies to the export."""
    classes = opened.class_map.to_list() if opened.class_map is not None else []
    return build_metadata(package_version(), spec_to_dict(opened.spec), classes, opened.meta.get("weights", "raw"))


def notes_of(opened: OpenedDetector) -> str | None:
    """`train.notes` of the checkpoint's training run."""
    stored = opened.meta.get("spec") or {}
    return (stored.get("train") or {}).get("notes")


def kpi_of(content: dict[str, Any]) -> dict[str, float]:
    """The largest differences from PyTorch, for the status line."""
    names = {"score": "score_difference", "box": "box_difference", "relative": "feature_difference"}
    worst = {
        kpi: max(each[name] for each in content["differences"])
        for name, kpi in names.items()
        if name in content["differences"][0]
    }
    return {**worst, **{name: content[name] for name in ("nodes", "cost") if name in content}}
