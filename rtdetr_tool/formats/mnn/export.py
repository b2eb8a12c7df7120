"""Export to MNN: FP32 must agree with PyTorch, weights of lower precision may change detections up to a limit."""

from __future__ import annotations

from typing import Any

from rtdetr_tool.files import remove_unfinished, replacing
from rtdetr_tool.formats.export_request import Differences, ExportRequest
from rtdetr_tool.formats.lower_precision import check_change
from rtdetr_tool.formats.mnn.convert import save
from rtdetr_tool.formats.mnn.file import read
from rtdetr_tool.formats.mnn.runtime import MnnRuntime, run_once
from rtdetr_tool.formats.onnx.export import export_graph
from rtdetr_tool.formats.table import FULL
from rtdetr_tool.formats.verification import verify_detections, verify_features
from rtdetr_tool.progress import Steps

CONVERTING, COMPARING, LOWERING = "converting the network", "comparing with PyTorch", "lowering the precision"


def export(request: ExportRequest) -> dict[str, Any]:
    """Verify and write the file; returns the content of `export.json`."""
    section, target = request.section, request.target
    precision, verbose = section.mnn.data_type, section.verbose
    shares = {CONVERTING: 6.0, COMPARING: 3.0} | ({LOWERING: 2.0} if precision != FULL else {})
    remove_unfinished(target)
    with Steps("Exporting to MNN", shares) as steps, replacing(target) as temporary:
        steps.begin(CONVERTING)
        graph = export_graph(request.model, request.size, request.batch, section.opset_version, verbose)
        save(graph, request.description, temporary, verbose=verbose)
        steps.begin(COMPARING)
        differences: Differences
        if section.backbone_only:
            features = request.features_of(temporary, run_once)
            differences = verify_features(request.reference, features, section.tolerance, target)
        else:
            runtime = MnnRuntime(read(temporary))
            differences = verify_detections(request.reference, runtime.predict, section.tolerance, target)
        lowered = {}
        if precision != FULL:
            steps.begin(LOWERING)
            save(graph, {**request.description, "precision": precision}, temporary, precision, verbose)
            lowered = check_change(request, MnnRuntime(read(temporary)).predict, precision, temporary.stat().st_size)
        return {**request.report(temporary, differences), "data_type": precision, **lowered}
