"""Exports in a lower precision than FP32: calibration images, and the limit on what it changes in detections."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.formats.calibration import calibration_images_from
from rtdetr_tool.formats.export_request import ExportRequest
from rtdetr_tool.formats.graph_tensors import to_graph
from rtdetr_tool.formats.table import FULL, Format
from rtdetr_tool.formats.verification import Predict, change_of_detections
from rtdetr_tool.progress import track
from rtdetr_tool.spec.export import CalibrationSpec, LowerPrecisionSpec

logger = logging.getLogger(__name__)


def precision_of(request: ExportRequest) -> str:
    """`export.<format>.data_type`."""
    precision: str = getattr(request.section, request.format.name).data_type
    return precision


class CalibrationFeeds:
    """Inputs as the file takes them, in its batch size; the last batch is padded with its own images.

    `images` is the number of images that the last iteration read.
    """

    def __init__(self, request: ExportRequest) -> None:
        self.request, self.images = request, 0

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        request, batch = self.request, self.request.batch or 1
        section: CalibrationSpec = getattr(request.section, request.format.name)
        given = section.calibration if request.calibration is None else request.calibration
        name = f"export.{request.format.name}.calibration"
        source = calibration_images_from(given, request.dataset, request.size, name, request.pixels)
        parts = source.batches(section.calibration_images, batch)
        total = -(-min(section.calibration_images, source.available) // batch)
        self.images = 0
        for part in track(parts, "Calibrating", total, "batches"):
            self.images += len(part)
            part = to_graph(part.repeat(-(-batch // len(part)), 1, 1, 1)[:batch], request.model.layout)
            yield part.contiguous().numpy()
        logger.info("Calibration: %d images of %s", self.images, source.origin)


def check_change(request: ExportRequest, predict: Predict, precision: str, size: int) -> dict[str, Any]:
    """What a file of `size` bytes in lower precision changes in detections, for export.json.

    Raises:
        RtdetrError: more than `export.<format>.max_cost`.
    """
    section: LowerPrecisionSpec = getattr(request.section, request.format.name)
    limit = section.max_cost
    difference, cost = change_of_detections(request.reference, predict)
    logger.info(
        "%s: %.1f MB; detections change by %.1f %%, a score by up to %.1e, a relative box coordinate by up to %.1e",
        precision, size / 1e6, 100 * cost, difference.score, difference.box,
    )  # fmt: skip
    if not cost <= limit:
        raise RtdetrError(
            f"{request.target} was not written: {precision} changes the detections by {cost:.3f} (0 = not at all, 1 = "
            f"nothing in common), but export.{request.format.name}.max_cost is {limit}. "
            f"{remedy(request.format, section, precision)}"
        )
    return {"cost": round(cost, 4), "change": difference.to_dict()}


def remedy(row: Format, section: LowerPrecisionSpec, precision: str) -> str:
    """What to do if a precision changes the detections too much."""
    higher = "FP16" if precision != "FP16" and "FP16" in row.precisions else FULL
    calibrated = precision == "INT8" and isinstance(section, CalibrationSpec)
    first = f"Calibrate on images like those of the task, use {higher}" if calibrated else f"Use {higher}"
    return f"{first}, or raise max_cost."
