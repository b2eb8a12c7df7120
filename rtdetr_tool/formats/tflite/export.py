"""Export to TFLite: FP16 and INT8 are made of the FP32 file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from rtdetr_tool.formats.export_request import ExportRequest
from rtdetr_tool.formats.lower_precision import CalibrationFeeds
from rtdetr_tool.formats.table import FULL
from rtdetr_tool.formats.tflite.convert import convert, to_fp16, to_int8
from rtdetr_tool.formats.tflite.file import append_description, read
from rtdetr_tool.formats.tflite.runtime import LiteRtRuntime, run_once
from rtdetr_tool.formats.verification import Predict
from rtdetr_tool.formats.verified_export import VerifiedExport


def export(request: ExportRequest) -> dict[str, Any]:
    """Verify and write the file; returns the content of `export.json`."""
    return TfliteExport(request).run()


class TfliteExport(VerifiedExport):
    shares = (5.0, 3.0, 4.0)

    def convert(self) -> None:
        request = self.request
        self.calibration = CalibrationFeeds(request)
        self.feeds = list(self.calibration) if self.precision == "INT8" else []  # first: it may end in an error
        self.content = convert(request.model, request.size, request.batch or 1, request.section.verbose)

    def write(self, file: Path, description: dict[str, Any], precision: str) -> dict[str, Any]:
        file.write_bytes(self._content_in(precision))
        append_description(file, description)
        return {} if precision == FULL else {"calibration_images": self.calibration.images}

    def _content_in(self, precision: str) -> bytes:
        if precision == "INT8":
            return to_int8(self.content, self.feeds, self.request.model.input_name)
        return to_fp16(self.content) if precision == "FP16" else self.content

    def predictor(self, file: Path) -> Predict:
        return LiteRtRuntime(read(file)).predict

    def run_once(self, file: Path, images: Tensor) -> dict[str, Tensor]:
        return run_once(file, images)
