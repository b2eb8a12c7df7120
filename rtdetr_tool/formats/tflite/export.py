"""Export to TFLite: FP32 must agree with PyTorch, a lower precision may change detections up to a limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdetr_tool.files import remove_unfinished, replacing
from rtdetr_tool.formats.export_request import Differences, ExportRequest
from rtdetr_tool.formats.lower_precision import calibration_feeds, check_change
from rtdetr_tool.formats.table import FULL
from rtdetr_tool.formats.tflite.convert import convert, to_fp16, to_int8
from rtdetr_tool.formats.tflite.file import append_description, read
from rtdetr_tool.formats.tflite.runtime import LiteRtRuntime, run_once
from rtdetr_tool.formats.verification import verify_detections, verify_features
from rtdetr_tool.progress import Steps

CONVERTING, COMPARING, LOWERING = "converting the network", "comparing with PyTorch", "lowering the precision"


def export(request: ExportRequest) -> dict[str, Any]:
    """Verify and write the TFLite file; returns the content of `export.json`."""
    section = request.section
    precision = section.tflite.data_type
    feeds = list(calibration_feeds(request)) if precision == "INT8" else []
    shares = {CONVERTING: 5.0, COMPARING: 3.0} | ({LOWERING: 4.0} if precision != FULL else {})
    with Steps("Exporting to TFLite", shares) as steps:
        steps.begin(CONVERTING)
        content = convert(request.model, request.size, request.batch or 1, section.verbose)
        steps.begin(COMPARING)
        return _verified(request, content, feeds, steps)


def _verified(request: ExportRequest, content: bytes, feeds: list[NDArray[np.float32]], steps: Steps) -> dict[str, Any]:
    """Write the file if it agrees with PyTorch; returns the content of `export.json`."""
    section, target = request.section, request.target
    precision = section.tflite.data_type
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
        lowered = {}
        if precision != FULL:
            steps.begin(LOWERING)
            lowered = lower_precision(request, content, feeds, temporary)
        return {**request.report(temporary, differences), "data_type": precision, **lowered}


def lower_precision(
    request: ExportRequest, content: bytes, feeds: list[NDArray[np.float32]], temporary: Path
) -> dict[str, Any]:
    """Replace the FP32 file by one of lower precision; returns the change of the detections."""
    precision = request.section.tflite.data_type
    lowered = to_int8(content, feeds, request.model.input_name) if precision == "INT8" else to_fp16(content)
    temporary.write_bytes(lowered)
    append_description(temporary, {**request.description, "precision": precision})
    change = check_change(request, LiteRtRuntime(read(temporary)).predict, precision, len(lowered))
    return {**change, "calibration_images": len(feeds)}
