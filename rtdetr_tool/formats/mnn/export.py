"""Export to MNN, from the ONNX graph; a lower precision is that of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from rtdetr_tool.formats.export_request import ExportRequest
from rtdetr_tool.formats.mnn.convert import save
from rtdetr_tool.formats.mnn.file import read
from rtdetr_tool.formats.mnn.runtime import MnnRuntime, run_once
from rtdetr_tool.formats.onnx.export import graph_of
from rtdetr_tool.formats.verification import Predict
from rtdetr_tool.formats.verified_export import VerifiedExport


def export(request: ExportRequest) -> dict[str, Any]:
    """Verify and write the file; returns the content of `export.json`."""
    return MnnExport(request).run()


class MnnExport(VerifiedExport):
    shares = (6.0, 3.0, 2.0)

    def convert(self) -> None:
        self.graph = graph_of(self.request)

    def write(self, file: Path, description: dict[str, Any], precision: str) -> dict[str, Any]:
        save(self.graph, description, file, precision, self.request.section.verbose)
        return {}

    def predictor(self, file: Path) -> Predict:
        return MnnRuntime(read(file)).predict

    def run_once(self, file: Path, images: Tensor) -> dict[str, Tensor]:
        return run_once(file, images)
