"""Export to ExecuTorch; INT8 programs are quantized before XNNPACK takes over what it supports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from rtdetr_tool.formats.executorch.convert import Converter
from rtdetr_tool.formats.executorch.file import read
from rtdetr_tool.formats.executorch.library import load_runtime
from rtdetr_tool.formats.executorch.runtime import ExecutorchRuntime, run_once
from rtdetr_tool.formats.export_request import ExportRequest
from rtdetr_tool.formats.lower_precision import CalibrationFeeds
from rtdetr_tool.formats.table import FULL
from rtdetr_tool.formats.verification import Predict
from rtdetr_tool.formats.verified_export import VerifiedExport


def export(request: ExportRequest) -> dict[str, Any]:
    """Verify and write the program; returns the content of `export.json`."""
    load_runtime(f"export.format={request.format.name}")
    return ExecutorchExport(request).run()


class ExecutorchExport(VerifiedExport):
    shares = (9.0, 1.0, 9.0)

    def convert(self) -> None:
        request = self.request
        self.calibration = CalibrationFeeds(request)
        self.feeds = list(self.calibration) if self.precision != FULL else []  # first: it may end in an error
        self.converter = Converter(request.model.cpu(), request.size, request.batch or 1, request.section.verbose)

    def write(self, file: Path, description: dict[str, Any], precision: str) -> dict[str, Any]:
        if precision == FULL:
            file.write_bytes(self.converter.fp32(description))
            return {}
        file.write_bytes(self.converter.int8(self.feeds, description))
        return {"calibration_images": self.calibration.images}

    def predictor(self, file: Path) -> Predict:
        return ExecutorchRuntime(read(file)).predict

    def run_once(self, file: Path, images: Tensor) -> dict[str, Tensor]:
        return run_once(file, images)
