"""Evaluate an ML Program with PyTorch, operator by operator, to check its numbers without macOS.

This is not Core ML: it computes what the documentation of MIL says each operator computes. Results in FP16 are computed
in FP32 and rounded. It finds errors of the conversion, not those of a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.formats.batching import BatchLimits, run_in_batches
from rtdetr_tool.formats.coreml.file import WEIGHTS, read, read_spec
from rtdetr_tool.formats.coreml.library import coremltools, silenced
from rtdetr_tool.formats.coreml.operators import OPERATORS
from rtdetr_tool.formats.graph_tensors import predictions_of, to_graph
from rtdetr_tool.ops.structures import Predictions


class EvaluatedProgram:
    """The program of a package, with its weights."""

    def __init__(self, path: Path) -> None:
        coremltools()
        from coremltools.converters.mil.frontend.milproto.load import load

        spec = read_spec(path)
        with silenced():
            program = load(spec, spec.specificationVersion, file_weights_dir=str(path / WEIGHTS))
        self._path, self._function = path, program.functions["main"]
        unknown = {op.op_type for op in self._function.operations} - set(OPERATORS) - {"const"}
        if unknown:
            raise RtdetrError(f"{path} cannot be checked: it has the operators {', '.join(sorted(unknown))}")

    @property
    def operators(self) -> list[str]:
        return [op.op_type for op in self._function.operations]

    def predict(self, images: Tensor) -> Predictions:
        """images [B, 3, H, W] RGB 0..1 -> raw predictions; CheckpointError if the package is no detector."""
        interface = read(self._path).interface
        batch = interface.batch or 1
        images = to_graph(images, interface.layout)
        return predictions_of(run_in_batches(images, BatchLimits(batch, batch), self.run), interface)

    @torch.no_grad()
    def run(self, images: Tensor) -> dict[str, Tensor]:
        """All outputs for an input of the program's batch size."""
        (name,) = self._function.inputs
        values: dict[str, Any] = {name: images}
        for op in self._function.operations:
            if op.op_type == "const":
                values[op.outputs[0].name] = _constant(op.outputs[0].val)
                continue
            arguments = {key: _value(var, values) for key, var in op.inputs.items() if var is not None}
            results = OPERATORS[op.op_type](**arguments)
            results = results if isinstance(results, tuple) else (results,)
            for var, result in zip(op.outputs, results, strict=True):
                values[var.name] = _rounded(result, var.dtype.__name__)
        return {var.name: values[var.name] for var in self._function.outputs}


def _value(var: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(var, list | tuple):
        return [_value(each, values) for each in var]
    return values[var.name] if var.name in values else _constant(var.val)


def _constant(value: Any) -> Any:
    """A constant as tensor, FP32 for all floating-point types; strings and Python's numbers unchanged."""
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind in "US":
        return value
    tensor = torch.from_numpy(np.array(value))
    return tensor.float() if tensor.is_floating_point() else tensor


def _rounded(result: Tensor, kind: str) -> Tensor:
    return result.half().float() if kind == "fp16" else result
