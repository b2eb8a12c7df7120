"""Export to OpenVINO: FP32 must agree with PyTorch, a lower precision may change detections up to a limit.

The ONNX graph is read by OpenVINO's own frontend. Its Python converter (`openvino.convert_model`) and NNCF are not
used, because both send usage statistics; INT8 graphs are quantized as `rtdetr quantize` does it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from rtdetr_tool.files import remove_unfinished, replacing_with_companion
from rtdetr_tool.formats.export_request import Differences, ExportRequest
from rtdetr_tool.formats.lower_precision import calibration_feeds, check_change
from rtdetr_tool.formats.onnx.export import export_graph
from rtdetr_tool.formats.openvino.file import attach, read, weights_path
from rtdetr_tool.formats.openvino.runtime import OpenvinoRuntime, run_once
from rtdetr_tool.formats.precision import to_quantized
from rtdetr_tool.formats.precision.calibration import Plan
from rtdetr_tool.formats.precision.graph import Graph
from rtdetr_tool.formats.precision.number_formats import INT8_NODE
from rtdetr_tool.formats.precision.quantize_nodes import quantizable
from rtdetr_tool.formats.table import FULL, size_of
from rtdetr_tool.formats.verification import verify_detections, verify_features
from rtdetr_tool.progress import Steps

if TYPE_CHECKING:
    import openvino

CONVERTING, COMPARING, LOWERING = "converting the network", "comparing with PyTorch", "lowering the precision"


def export(request: ExportRequest) -> dict[str, Any]:
    """Write the OpenVINO file once it is verified; returns the content of `export.json`."""
    section = request.section
    precision = section.openvino.data_type
    shares = {CONVERTING: 6.0, COMPARING: 3.0} | ({LOWERING: 6.0} if precision != FULL else {})
    with Steps("Exporting to OpenVINO", shares) as steps:
        steps.begin(CONVERTING)
        graph = export_graph(request.model, request.size, request.batch, section.opset_version, section.verbose)
        steps.begin(COMPARING)
        return _verified(request, graph, steps)


def _verified(request: ExportRequest, graph: onnx.ModelProto, steps: Steps) -> dict[str, Any]:
    """Write the file if it agrees with PyTorch; returns the content of `export.json`."""
    section, target = request.section, request.target
    precision = section.openvino.data_type
    remove_unfinished(target)
    with replacing_with_companion(target, weights_path) as temporary:
        save(graph, request.description, temporary)
        differences: Differences
        if section.backbone_only:
            features = request.features_of(temporary, run_once)
            differences = verify_features(request.reference, features, section.tolerance, target)
        else:
            runtime = OpenvinoRuntime(read(temporary))
            differences = verify_detections(request.reference, runtime.predict, section.tolerance, target)
        lowered = {}
        if precision != FULL:
            steps.begin(LOWERING)
            lowered = lower_precision(request, graph, temporary)
        report = {**request.report(temporary, differences), "data_type": precision, **lowered}
        return {**report, "bytes": size_of(temporary)}


def lower_precision(request: ExportRequest, graph: onnx.ModelProto, temporary: Path) -> dict[str, Any]:
    """Replace the FP32 file by one of lower precision; returns how much that changes detections."""
    precision = request.section.openvino.data_type
    account: dict[str, Any] = {}
    if precision == "INT8":
        formats = dict.fromkeys(quantizable(Graph(graph)), INT8_NODE)
        plan = Plan(remedy="export.openvino.data_type=FP16")
        quantized = to_quantized(graph, formats, calibration_feeds(request), plan)
        graph, account = quantized.model, {"quantized": quantized.quantized, "calibration": quantized.calibration}
    save(graph, {**request.description, "precision": precision}, temporary, half=precision == "FP16")
    change = check_change(request, OpenvinoRuntime(read(temporary)).predict, precision, size_of(temporary))
    return {**change, **account}


def save(graph: onnx.ModelProto, description: dict[str, Any], path: Path, half: bool = False) -> None:
    """Convert an ONNX graph and write it with its weights, in FP16 with `half`."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        onnx.save(graph, file)
        model: openvino.Model = openvino.Core().read_model(file)
        attach(model, description)
        openvino.save_model(model, path, compress_to_fp16=half)
