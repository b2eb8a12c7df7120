"""Export to ExecuTorch: FP32 must agree with PyTorch, INT8 may change detections up to a limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdetr_tool.files import remove_unfinished, replacing
from rtdetr_tool.formats.executorch.convert import Converter
from rtdetr_tool.formats.executorch.file import read
from rtdetr_tool.formats.executorch.library import load_runtime
from rtdetr_tool.formats.executorch.runtime import ExecutorchRuntime, run_once
from rtdetr_tool.formats.export_request import Differences, ExportRequest
from rtdetr_tool.formats.lower_precision import calibration_feeds, check_change
from rtdetr_tool.formats.table import FULL
from rtdetr_tool.formats.verification import verify_detections, verify_features
from rtdetr_tool.progress import Steps

CONVERTING, COMPARING, LOWERING = "converting the network", "comparing with PyTorch", "lowering the precision"


def export(request: ExportRequest) -> dict[str, Any]:
    """Verify and write the program; returns the content of `export.json`."""
    section, target = request.section, request.target
    precision = section.executorch.data_type
    load_runtime(f"export.format={request.format.name}")
    feeds = list(calibration_feeds(request)) if precision != FULL else []
    shares = {CONVERTING: 9.0, COMPARING: 1.0} | ({LOWERING: 9.0} if precision != FULL else {})
    with Steps("Exporting to ExecuTorch", shares) as steps:
        steps.begin(CONVERTING)
        converter = Converter(request.model.cpu(), request.size, request.batch or 1, section.verbose)
        content = converter.fp32(request.description)
        steps.begin(COMPARING)
        remove_unfinished(target)
        with replacing(target) as temporary:
            temporary.write_bytes(content)
            differences, lowered = _differences(request, temporary), {}
            if precision != FULL:
                steps.begin(LOWERING)
                lowered = lower_precision(request, converter, feeds, temporary)
            return {**request.report(temporary, differences), "data_type": precision, **lowered}


def lower_precision(
    request: ExportRequest, converter: Converter, feeds: list[NDArray[np.float32]], temporary: Path
) -> dict[str, Any]:
    """Replace the FP32 program by one in INT8; returns the change of the detections."""
    precision = request.section.executorch.data_type
    lowered = converter.int8(feeds, {**request.description, "precision": precision})
    temporary.write_bytes(lowered)
    change = check_change(request, ExecutorchRuntime(read(temporary)).predict, precision, len(lowered))
    return {**change, "calibration_images": len(feeds)}


def _differences(request: ExportRequest, file: Path) -> Differences:
    tolerance, target = request.section.tolerance, request.target
    if request.section.backbone_only:
        return verify_features(request.reference, request.features_of(file, run_once), tolerance, target)
    return verify_detections(request.reference, ExecutorchRuntime(read(file)).predict, tolerance, target)
