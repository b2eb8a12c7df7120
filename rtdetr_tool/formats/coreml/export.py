"""Export to Core ML, whose packages are evaluated operator by operator.

Core ML runs on Apple's systems only. The numbers are therefore those of the program in the written package
(`program.py`), on every system.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor

from rtdetr_tool.files import replacing_directory, sha256_of
from rtdetr_tool.formats.coreml.convert import Converter
from rtdetr_tool.formats.coreml.file import PROGRAM
from rtdetr_tool.formats.coreml.program import EvaluatedProgram
from rtdetr_tool.formats.export_request import ExportRequest
from rtdetr_tool.formats.verification import Predict
from rtdetr_tool.formats.verified_export import VerifiedExport


def export(request: ExportRequest) -> dict[str, Any]:
    """Verify and write the package; returns the content of `export.json`."""
    return CoremlExport(request).run()


class CoremlExport(VerifiedExport):
    shares = (6.0, 3.0, 9.0)

    def convert(self) -> None:
        request = self.request
        self.converter = Converter(request.model.cpu(), request.size, request.batch or 1, request.section.verbose)

    def replacing(self, target: Path) -> AbstractContextManager[Path]:
        return replacing_directory(target)

    def write(self, file: Path, description: dict[str, Any], precision: str) -> dict[str, Any]:
        self.converter.save(file, description, half=precision == "FP16")
        weights = next((file / PROGRAM.parent).rglob("weight.bin"))
        return {
            "sha256": sha256_of(file / PROGRAM),
            "weights_sha256": sha256_of(weights),
            "compared": "the program, evaluated operator by operator; Core ML itself was not run",
        }

    def predictor(self, file: Path) -> Predict:
        return EvaluatedProgram(file).predict

    def run_once(self, file: Path, images: Tensor) -> dict[str, Tensor]:
        return EvaluatedProgram(file).run(images)
