"""How `rtdetr export` writes a file: ONNX or TFLite, held against torch while it has a temporary name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.files import remove_unfinished, replacing, sha256_of
from rtdetr_tool.formats.calibration import calibration_pictures
from rtdetr_tool.formats.export_model import ExportFeatures, ExportModel
from rtdetr_tool.formats.graph_tensors import to_graph
from rtdetr_tool.formats.onnx import runtime as onnx_runtime
from rtdetr_tool.formats.onnx.export import export_graph
from rtdetr_tool.formats.onnx.file import attach, bytes_of, interface_of, replacing_onnx, weights_beside
from rtdetr_tool.formats.tflite import export as tflite
from rtdetr_tool.formats.tflite import runtime as litert_runtime
from rtdetr_tool.formats.tflite.file import append_description
from rtdetr_tool.formats.verification import Reference, change_of_detections, verify_detections, verify_features
from rtdetr_tool.spec import DatasetSpec, ExportSpec
from rtdetr_tool.status import current_status
from rtdetr_tool.version import package_version

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What is to be written, and what it is held against."""

    section: ExportSpec
    target: Path
    model: ExportModel | ExportFeatures
    size: tuple[int, int]  # (height, width)
    batch: int | None  # None = dynamic
    description: dict[str, Any]
    reference: Reference


def write_onnx(order: Order) -> dict[str, Any]:
    """Write the ONNX file; what it is and how far it is from torch comes back."""
    section, target, reference = order.section, order.target, order.reference
    graph = export_graph(order.model, order.size, order.batch, section.opset_version, section.verbose)
    attach(graph, order.description)
    interface = None if section.backbone_only else interface_of(graph, target)
    with replacing_onnx(target, graph) as temporary:
        if interface is None:
            run = features_of(order, temporary, onnx_runtime.run_once)
            found = verify_features(reference, run, section.tolerance, target)
        else:
            runtime = onnx_runtime.OnnxRuntime(temporary, interface, provider="cpu")
            found = verify_detections(reference, runtime.predict, section.tolerance, target)
        beside = weights_beside(temporary)
        return {
            **summary(order, temporary, found),
            "weights_sha256": sha256_of(beside) if beside else None,
            "bytes": bytes_of(temporary),
            "nodes": len(graph.graph.node),
            "opset": section.opset_version,
        }


def write_tflite(order: Order, dataset: DatasetSpec, calibration: str | np.ndarray | None) -> dict[str, Any]:
    """Write the TFLite file. Its FP32 form must be equal to torch; a lower precision may change detections as much as
    `export.tflite.max_cost` says."""
    section, target = order.section, order.target
    feeds = calibration_feeds(order, dataset, calibration) if section.tflite.data_type == "INT8" else []
    current_status().running("Converting to TFLite.")
    content = tflite.convert(order.model, order.size, order.batch or 1, section.verbose)
    remove_unfinished(target)
    with replacing(target) as temporary:
        temporary.write_bytes(content)
        append_description(temporary, order.description)
        if section.backbone_only:
            run = features_of(order, temporary, litert_runtime.run_once)
            found = verify_features(order.reference, run, section.tolerance, target)
        else:
            runtime = litert_runtime.LiteRtRuntime(temporary)
            found = verify_detections(order.reference, runtime.predict, section.tolerance, target)
        report: dict[str, Any] = {"data_type": section.tflite.data_type}
        if section.tflite.data_type != "FP32":
            report |= lower_precision(order, content, feeds, temporary)
        return {**summary(order, temporary, found), **report}


def lower_precision(order: Order, content: bytes, feeds: list[np.ndarray], temporary: Path) -> dict[str, Any]:
    """Replace the FP32 file by one of lower precision; how much that changes detections comes back."""
    wanted, limit = order.section.tflite.data_type, order.section.tflite.max_cost
    current_status().running(f"Lowering the precision to {wanted}.")
    input_name = order.model.input_name
    content = tflite.to_int8(content, feeds, input_name) if wanted == "INT8" else tflite.to_fp16(content)
    temporary.write_bytes(content)
    append_description(temporary, {**order.description, "precision": wanted})
    difference, cost = change_of_detections(order.reference, litert_runtime.LiteRtRuntime(temporary).predict)
    logger.info(
        "%s: %.1f MB; detections change by %.1f %%, a score by up to %.1e, a relative box coordinate by up to %.1e",
        wanted, len(content) / 1e6, 100 * cost, difference.score, difference.box,
    )  # fmt: skip
    if not cost <= limit:
        raise RtdetrError(
            f"{order.target} was not written: {wanted} changes the detections by {cost:.3f} (0 = not at all, 1 = "
            f"nothing in common); export.tflite.max_cost allows {limit}. Calibrate on pictures like those of the task, "
            "take FP16, or allow more."
        )
    return {"cost": round(cost, 4), "change": difference.to_dict(), "calibration_images": len(feeds)}


def calibration_feeds(order: Order, dataset: DatasetSpec, given: str | np.ndarray | None) -> list[np.ndarray]:
    """Inputs as the file takes them, in its batch size; the last batch is filled up with its own pictures."""
    source, batch, feeds = calibration_pictures(given, dataset, order.size), order.batch or 1, []
    for part in source.batches(order.section.tflite.calibration_images, batch):
        part = to_graph(part.repeat(-(-batch // len(part)), 1, 1, 1)[:batch], order.model.layout)
        feeds.append(part.contiguous().numpy())
    logger.info("Calibration: %d pictures of %s", len(feeds) * batch, source.origin)
    return feeds


def features_of(
    order: Order, file: Path, run_once: Callable[[Path, torch.Tensor], dict[str, torch.Tensor]]
) -> Callable[[torch.Tensor], Sequence[torch.Tensor]]:
    """A function from pictures RGB 0..1 to the maps of a file without decoder."""

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        found = run_once(file, to_graph(images, order.model.layout))
        return [found[name] for name in order.model.output_names]

    return run


def summary(order: Order, file: Path, found: list) -> dict[str, Any]:
    """What `export.json` says of every format."""
    return {
        "onnx_file" if order.section.format == "onnx" else "tflite_file": str(order.target),
        "checkpoint": order.section.checkpoint,
        "sha256": sha256_of(file),
        "bytes": file.stat().st_size,
        "batch": "dynamic" if order.batch is None else order.batch,
        "layout": order.section.layout,
        "input_size": list(order.size),
        "outputs": list(order.model.output_names),
        "tolerance": order.section.tolerance,
        "pictures": order.reference.origin,
        "differences": [difference.to_dict() for difference in found],
        "version": package_version(),
    }
