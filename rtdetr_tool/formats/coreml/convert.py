"""Convert a detector to a Core ML package (ML Program) with coremltools, from the graph of `torch.export`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.formats.coreml.library import coremltools, register_operators, silenced
from rtdetr_tool.formats.description import to_texts
from rtdetr_tool.formats.export_model import ExportFeatures, ExportModel
from rtdetr_tool.formats.onnx.export import quiet
from rtdetr_tool.formats.onnx.opset_fallbacks import fallback_operators
from rtdetr_tool.messages import first_line

TRACED_INPUT = "images"  # argument of `ExportModel.forward`
_DEBUG_FILE = "executorch_debug_handle_mapping.json"


class Converter:
    """A captured detector; each call of `save` converts it again."""

    def __init__(self, model: ExportModel | ExportFeatures, size: tuple[int, int], batch: int, verbose: bool) -> None:
        self._input, self._outputs, self._verbose = model.input_name, model.output_names, verbose
        register_operators()
        images = torch.rand(batch, model.detector.num_channels, *size)
        with torch.no_grad(), quiet(verbose), fallback_operators("scaled_dot_product_attention"):
            captured = torch.export.export(model.eval(), (images,), strict=False)
            self._captured = captured.run_decompositions({})

    def save(self, path: Path, description: Mapping[str, Any], half: bool = False) -> None:
        """Write a package, with weights and computation in FP16 with `half`; inputs and outputs stay float32."""
        tools = coremltools()
        precision = tools.precision.FLOAT16 if half else tools.precision.FLOAT32
        try:
            with silenced(self._verbose):
                package = tools.convert(
                    self._captured,
                    outputs=[tools.TensorType(name=name, dtype=np.float32) for name in self._outputs],
                    convert_to="mlprogram",
                    minimum_deployment_target=tools.target.iOS16,
                    compute_precision=precision,
                    skip_model_load=True,
                )
                spec = package.get_spec()
                tools.utils.rename_feature(spec, TRACED_INPUT, self._input)
                spec.description.metadata.userDefined.update(to_texts(description))
                tools.models.MLModel(spec, weights_dir=package.weights_dir, skip_model_load=True).save(str(path))
        except Exception as error:  # of coremltools, without a common base
            raise RtdetrError(f"coremltools cannot convert this model: {first_line(error)[:300]}") from error
        (path / _DEBUG_FILE).unlink(missing_ok=True)
