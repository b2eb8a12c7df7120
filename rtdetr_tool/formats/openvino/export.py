"""Export to OpenVINO, from the ONNX graph.

The graph is read by OpenVINO's own frontend. Its Python converter (`openvino.convert_model`) and NNCF are not used,
because both send usage statistics; INT8 graphs are quantized as `rtdetr quantize` does it.
"""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from torch import Tensor

from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.files import replacing_with_companion
from rtdetr_tool.formats.export_request import ExportRequest
from rtdetr_tool.formats.lower_precision import CalibrationFeeds
from rtdetr_tool.formats.onnx.export import graph_of
from rtdetr_tool.formats.openvino.agreement import check_agreement
from rtdetr_tool.formats.openvino.biases import with_biases
from rtdetr_tool.formats.openvino.file import attach, read, weights_path
from rtdetr_tool.formats.openvino.library import core, reason_of
from rtdetr_tool.formats.openvino.runtime import OpenvinoRuntime, run_once
from rtdetr_tool.formats.openvino.unsigned import with_unsigned_activations
from rtdetr_tool.formats.precision import to_quantized
from rtdetr_tool.formats.precision.calibration import Plan
from rtdetr_tool.formats.precision.graph import Graph
from rtdetr_tool.formats.precision.number_formats import INT8_NODE
from rtdetr_tool.formats.precision.quantize_nodes import quantizable
from rtdetr_tool.formats.verification import Predict
from rtdetr_tool.formats.verified_export import VerifiedExport

if TYPE_CHECKING:
    import openvino


def export(request: ExportRequest) -> dict[str, Any]:
    """Verify and write the file and its weights; returns the content of `export.json`."""
    return OpenvinoExport(request).run()


class OpenvinoExport(VerifiedExport):
    def convert(self) -> None:
        self.graph = graph_of(self.request)

    def replacing(self, target: Path) -> AbstractContextManager[Path]:
        return replacing_with_companion(target, weights_path)

    def write(self, file: Path, description: dict[str, Any], precision: str) -> dict[str, Any]:
        graph, account = self._quantized() if precision == "INT8" else (self.graph, {})
        save(graph, description, file, half=precision == "FP16")
        if precision == "INT8":
            account["error_ratio"] = check_agreement(self.request, self.graph, graph)
        return account

    def _quantized(self) -> tuple[onnx.ModelProto, dict[str, Any]]:
        formats = dict.fromkeys(quantizable(Graph(self.graph)), INT8_NODE)
        plan = Plan(remedy="export.openvino.data_type=FP16")
        feeds = CalibrationFeeds(self.request)
        result = to_quantized(self.graph, formats, feeds, plan)
        calibration = {**(result.calibration or {}), "images": feeds.images}  # not those that pad the last batch
        model = with_biases(with_unsigned_activations(result.model))
        return model, {"quantized": result.quantized, "calibration": calibration}

    def predictor(self, file: Path) -> Predict:
        return OpenvinoRuntime(read(file)).predict

    def run_once(self, file: Path, images: Tensor) -> dict[str, Tensor]:
        return run_once(file, images)


def save(graph: onnx.ModelProto, description: dict[str, Any], path: Path, half: bool = False) -> None:
    """Convert an ONNX graph and write it with its weights, in FP16 with `half`.

    Raises:
        RtdetrError: OpenVINO cannot convert the graph.
    """
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        onnx.save(graph, file)
        try:
            model: openvino.Model = core().read_model(file)
        except RuntimeError as error:
            version = openvino.__version__.split("-")[0]
            raise RtdetrError(f"OpenVINO {version} cannot convert this model: {reason_of(error)}") from error
        attach(model, description)
        openvino.save_model(model, path, compress_to_fp16=half)
