"""Convert a detector to an ExecuTorch program: `torch.export`, PT2E quantization, XNNPACK for what it supports.

A program has neither names of inputs and outputs nor metadata, so both are the constant result of a second method
(`DESCRIPTION`), which any runtime can call.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.formats.executorch.file import DESCRIPTION
from rtdetr_tool.formats.executorch.library import import_quietly
from rtdetr_tool.formats.export_model import ExportFeatures, ExportModel
from rtdetr_tool.formats.onnx.export import quiet
from rtdetr_tool.formats.onnx.opset_fallbacks import fallback_operators
from rtdetr_tool.messages import first_line

FLOAT = "detector.decoder"  # the module that stays in FP32


class Converter:
    """A captured detector; each call of `fp32` or `int8` converts it again."""

    def __init__(self, model: ExportModel | ExportFeatures, size: tuple[int, int], batch: int, verbose: bool) -> None:
        self._images, self._verbose = torch.rand(batch, model.detector.num_channels, *size), verbose
        self._names = {"inputs": [model.input_name], "outputs": list(model.output_names)}
        import_quietly("executorch.exir", "torchao.quantization.pt2e.quantize_pt2e")
        with self._guarded():
            self._captured = torch.export.export(model.eval(), (self._images,), strict=False)

    def fp32(self, description: Mapping[str, Any]) -> bytes:
        with self._guarded():
            return self._lowered(self._captured, description)

    def int8(self, feeds: Iterable[NDArray[np.float32]], description: Mapping[str, Any]) -> bytes:
        """Convolutions and linear layers before the decoder in INT8, with ranges of `feeds` (inputs of the program)."""
        with self._guarded():
            from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

            quantizer = xnnpack_quantizer.XNNPACKQuantizer()
            quantizer.set_global(xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=True))
            quantizer.set_filter_function(_is_quantized)
            prepared = prepare_pt2e(self._captured.module(), quantizer)
        for feed in feeds:
            prepared(torch.from_numpy(feed))
        with self._guarded():
            quantized = torch.export.export(convert_pt2e(prepared), (self._images,), strict=False)
            return self._lowered(quantized, description)

    def _lowered(self, captured: torch.export.ExportedProgram, description: Mapping[str, Any]) -> bytes:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

        text = json.dumps({**self._names, "description": dict(description)})
        program = to_edge_transform_and_lower(
            captured,
            partitioner=[XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
            constant_methods={DESCRIPTION: text},
        )
        return bytes(program.to_executorch().buffer)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Capture with plain attention, without the tools' warnings; RtdetrError if they fail.

        PyTorch's decomposition of attention checks for rows without any key, also where there are none.
        """
        try:
            with torch.no_grad(), quiet(self._verbose), fallback_operators("scaled_dot_product_attention"):
                yield
        except Exception as error:  # from torch.export, torchao and ExecuTorch, without a common base
            raise RtdetrError(f"ExecuTorch cannot convert this model: {first_line(error)[:300]}") from error


def _is_quantized(node: torch.fx.Node) -> bool:
    """Whether a node is in INT8: weights, and what is computed before the decoder.

    Projections of attention, whose weights are parts of a larger tensor, are not: XNNPACK does not recognize them.
    The quantizer asks for the weights of a convolution too, which belong to no module; so its own filter by module
    names, which they fail, would leave all convolutions in FP32.
    """
    if node.op == "get_attr":
        return True
    if node.target is torch.ops.aten.linear.default and getattr(node.args[1], "op", "") != "get_attr":
        return False
    modules = [name for name, _ in node.meta.get("nn_module_stack", {}).values()]
    return bool(modules) and not any(name.startswith(FLOAT) for name in modules)
