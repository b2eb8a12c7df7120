"""Export to Core ML: FP32 must agree with PyTorch, FP16 may change detections up to a limit.

Core ML runs on Apple's systems only. The numbers are therefore those of the program in the written package, evaluated
operator by operator (`program.py`), on every system.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from rtdetr_tool.files import remove_unfinished, replacing_directory, sha256_of
from rtdetr_tool.formats.coreml.convert import Converter
from rtdetr_tool.formats.coreml.file import PROGRAM
from rtdetr_tool.formats.coreml.program import EvaluatedProgram
from rtdetr_tool.formats.export_request import Differences, ExportRequest
from rtdetr_tool.formats.lower_precision import check_change
from rtdetr_tool.formats.table import FULL, size_of
from rtdetr_tool.formats.verification import verify_detections, verify_features
from rtdetr_tool.progress import Steps

CONVERTING, COMPARING, LOWERING = "converting the network", "comparing with PyTorch", "lowering the precision"


def export(request: ExportRequest) -> dict[str, Any]:
    """Verify and write the package; returns the content of `export.json`."""
    section, target = request.section, request.target
    precision = section.coreml.data_type
    shares = {CONVERTING: 6.0, COMPARING: 3.0} | ({LOWERING: 9.0} if precision != FULL else {})
    remove_unfinished(target)
    with Steps("Exporting to Core ML", shares) as steps, replacing_directory(target) as temporary:
        steps.begin(CONVERTING)
        converter = Converter(request.model.cpu(), request.size, request.batch or 1, section.verbose)
        converter.save(temporary, request.description)
        steps.begin(COMPARING)
        differences, lowered = _differences(request, temporary), {}
        if precision != FULL:
            steps.begin(LOWERING)
            converter.save(temporary, {**request.description, "precision": precision}, half=True)
            program = EvaluatedProgram(temporary)
            lowered = check_change(request, program.predict, precision, size_of(temporary))
        report = request.report(temporary / PROGRAM, differences)
        weights = next((temporary / PROGRAM.parent).rglob("weight.bin"))
        return {
            **report,
            "weights_sha256": sha256_of(weights),
            "bytes": size_of(temporary),
            "data_type": precision,
            "compared": "the program, evaluated operator by operator; Core ML itself was not run",
            **lowered,
        }


def _differences(request: ExportRequest, package: Path) -> Differences:
    tolerance, target = request.section.tolerance, request.target
    if request.section.backbone_only:
        return verify_features(request.reference, request.features_of(package, run_once), tolerance, target)
    return verify_detections(request.reference, EvaluatedProgram(package).predict, tolerance, target)


def run_once(package: Path, images: Tensor) -> dict[str, Tensor]:
    """All outputs of a package with one input for `images`, which are passed unchanged."""
    return EvaluatedProgram(package).run(images)
