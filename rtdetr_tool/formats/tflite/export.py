"""Export to TFLite: FP32 must agree with PyTorch, a lower precision may change detections up to a limit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.files import remove_unfinished, replacing
from rtdetr_tool.formats.calibration import calibration_images_from
from rtdetr_tool.formats.export_request import Differences, ExportRequest
from rtdetr_tool.formats.graph_tensors import to_graph
from rtdetr_tool.formats.table import FULL
from rtdetr_tool.formats.tflite.convert import convert, to_fp16, to_int8
from rtdetr_tool.formats.tflite.file import append_description, read
from rtdetr_tool.formats.tflite.runtime import LiteRtRuntime, run_once
from rtdetr_tool.formats.verification import change_of_detections, verify_detections, verify_features
from rtdetr_tool.status import current_status

logger = logging.getLogger(__name__)


def export(request: ExportRequest) -> dict[str, Any]:
    """Write the TFLite file once it is verified; returns the content of `export.json`."""
    section, target = request.section, request.target
    precision = section.tflite.data_type
    feeds = list(calibration_feeds(request)) if precision == "INT8" else []
    current_status().running("Converting to TFLite.")
    content = convert(request.model, request.size, request.batch or 1, section.verbose)
    remove_unfinished(target)
    with replacing(target) as temporary:
        temporary.write_bytes(content)
        append_description(temporary, request.description)
        differences: Differences
        if section.backbone_only:
            features = request.features_of(temporary, run_once)
            differences = verify_features(request.reference, features, section.tolerance, target)
        else:
            runtime = LiteRtRuntime(read(temporary))
            differences = verify_detections(request.reference, runtime.predict, section.tolerance, target)
        lowered = {} if precision == FULL else lower_precision(request, content, feeds, temporary)
        return {**request.report(temporary, differences), "data_type": precision, **lowered}


def lower_precision(
    request: ExportRequest, content: bytes, feeds: list[NDArray[np.float32]], temporary: Path
) -> dict[str, Any]:
    """Replace the FP32 file by one of lower precision; returns how much that changes detections."""
    precision, limit = request.section.tflite.data_type, request.section.tflite.max_cost
    current_status().running(f"Lowering the precision to {precision}.")
    lowered = to_int8(content, feeds, request.model.input_name) if precision == "INT8" else to_fp16(content)
    temporary.write_bytes(lowered)
    append_description(temporary, {**request.description, "precision": precision})
    difference, cost = change_of_detections(request.reference, LiteRtRuntime(read(temporary)).predict)
    logger.info(
        "%s: %.1f MB; detections change by %.1f %%, a score by up to %.1e, a relative box coordinate by up to %.1e",
        precision, len(lowered) / 1e6, 100 * cost, difference.score, difference.box,
    )  # fmt: skip
    if not cost <= limit:
        raise RtdetrError(
            f"{request.target} was not written: {precision} changes the detections by {cost:.3f} (0 = not at all, 1 = "
            f"nothing in common), but export.tflite.max_cost is {limit}. Calibrate on images like those of the task, "
            "use FP16, or raise max_cost."
        )
    return {"cost": round(cost, 4), "change": difference.to_dict(), "calibration_images": len(feeds)}


def calibration_feeds(request: ExportRequest) -> Iterator[NDArray[np.float32]]:
    """Inputs as the file takes them, in its batch size; the last batch is padded with its own images."""
    section, batch = request.section.tflite, request.batch or 1
    given = section.calibration if request.calibration is None else request.calibration
    source, count = calibration_images_from(given, request.dataset, request.size), 0
    for part in source.batches(section.calibration_images, batch):
        part = to_graph(part.repeat(-(-batch // len(part)), 1, 1, 1)[:batch], request.model.layout)
        count += batch
        yield part.contiguous().numpy()
    logger.info("Calibration: %d images of %s", count, source.origin)
