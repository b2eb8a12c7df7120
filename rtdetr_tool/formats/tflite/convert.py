"""Convert a detector to TFLite with LiteRT's own tools: litert-torch converts, ai-edge-quantizer lowers precision.

Both work without TensorFlow and without ONNX, on the graph that `torch.export` captures.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.formats.export_model import ExportFeatures, ExportModel
from rtdetr_tool.formats.onnx.export import quiet
from rtdetr_tool.messages import first_line

SIGNATURE = "serving_default"

# The operators with nearly all weights and computation. Sampling, selection and box refinement stay in float.
QUANTIZED = ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "FULLY_CONNECTED")
EVERYWHERE, BEFORE_DECODER = ".*", ".*_(backbone|encoder)/.*"  # patterns of module paths in tensor names


def convert(model: ExportModel | ExportFeatures, size: tuple[int, int], batch: int, verbose: bool = False) -> bytes:
    """The FP32 file of `model` for inputs [batch, C, *size]; its signature has the names of the layout."""
    with _silenced(verbose):
        import litert_torch

    images = torch.rand(batch, model.detector.num_channels, *size)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), _silenced(verbose):
        file = Path(folder) / "model.tflite"
        try:
            converted = litert_torch.convert(_Named(model).eval(), sample_kwargs={model.input_name: images})
            converted.export(str(file))
        except Exception as error:  # from torch.export, MLIR and the converter, without a common base
            raise RtdetrError(f"litert-torch cannot convert this model: {first_line(error)[:300]}") from error
        return file.read_bytes()


def to_fp16(content: bytes) -> bytes:
    """Convert weights to FP16; the interpreter computes in FP32, or in FP16 if the device supports it."""
    return _quantized(content, _fp16_recipe)


def to_int8(content: bytes, feeds: Iterable[NDArray[np.float32]], input_name: str) -> bytes:
    """Run convolutions and linear layers before the decoder in INT8; those of the decoder only have INT8 weights.

    Args:
        feeds: inputs in the shape of the file, for the ranges of the activations.
    """
    return _quantized(content, _int8_recipe, [{input_name: feed} for feed in feeds])


class _Named(nn.Module):
    """A model with named inputs and outputs; torch.export keeps dictionary keys."""

    def __init__(self, model: ExportModel | ExportFeatures) -> None:
        super().__init__()
        self.model = model

    def forward(self, **images: Tensor) -> dict[str, Tensor]:
        (image,) = images.values()
        with _UsedIndices():
            outputs = self.model(image)
        return dict(zip(self.model.output_names, outputs, strict=True))


class _UsedIndices(TorchFunctionMode):
    """Let the values of every top-k depend on its indices, without changing them.

    From a top-k whose indices are not used, the converter makes a sort (STABLEHLO_SORT), which LiteRT 2.3.0 cannot run,
    instead of TOPK_V2. The additional operators are not in the converted file.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.topk, Tensor.topk):
            return type(result)((result.values + 0 * result.indices, result.indices))
        return result


def _quantized(
    content: bytes, recipe: Callable[[Any], None], feeds: list[dict[str, NDArray[np.float32]]] | None = None
) -> bytes:
    with _silenced(False):
        from ai_edge_quantizer import calibrator, quantizer, recipe_manager

        manager = recipe_manager.RecipeManager()
        recipe(manager)
        run = quantizer.Quantizer(bytearray(content), manager.get_quantization_recipe())
        mode = calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED  # the other one takes a minute per image
        ranges = run.calibrate({SIGNATURE: feeds}, mode=mode) if feeds else None
        return bytes(run.quantize(ranges, enable_progress_report=False).quantized_model)


def _fp16_recipe(manager: Any) -> None:
    from ai_edge_quantizer import algorithm_manager, qtyping

    for name in QUANTIZED:
        manager.add_weight_only_config(
            EVERYWHERE, qtyping.TFLOperationName(name), 16, qtyping.QuantGranularity.TENSORWISE,
            algorithm_manager.AlgorithmName.FLOAT_CASTING,
        )  # fmt: skip


def _int8_recipe(manager: Any) -> None:
    from ai_edge_quantizer import qtyping

    for name in QUANTIZED:
        manager.add_weight_only_config(EVERYWHERE, qtyping.TFLOperationName(name), 8)
    for name in QUANTIZED:
        manager.add_static_config(BEFORE_DECODER, qtyping.TFLOperationName(name), 8, 8)


@contextlib.contextmanager
def _silenced(verbose: bool) -> Iterator[None]:
    """Hide the tools' progress output, unless verbose."""
    with quiet(verbose), contextlib.ExitStack() as stack:
        if not verbose:
            nowhere = stack.enter_context(tempfile.TemporaryFile("w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield
