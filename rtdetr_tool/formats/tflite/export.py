"""From a detector to a TFLite file with LiteRT's own tools: litert-torch converts, ai-edge-quantizer lowers precision.

Both work without TensorFlow and without ONNX; the graph is the one that `torch.export` captures. They are an extra.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rtdetr_tool.errors import RtdetrError, UserError
from rtdetr_tool.formats.export_model import ExportFeatures, ExportModel
from rtdetr_tool.formats.onnx.export import quiet

PIP_COMMAND = 'pip install "rtdetr-tool[tflite]"'
SIGNATURE = "serving_default"

# What carries nearly all weights and work. Sampling, selection and box refinement stay in float.
QUANTISED = ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "FULLY_CONNECTED")
EVERYWHERE, BEFORE_DECODER = ".*", ".*_(backbone|encoder)/.*"  # patterns on paths of modules in names of tensors


def check_installed() -> None:
    """UserError with the pip command where a package is missing."""
    missing = [name for name in ("litert_torch", "ai_edge_quantizer") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"export.format tflite needs {', '.join(missing)}, not installed here: {PIP_COMMAND}")


def convert(model: ExportModel | ExportFeatures, size: tuple[int, int], batch: int, verbose: bool = False) -> bytes:
    """The FP32 file of `model` for inputs [batch, 3, *size]; its signature has the names of the layout."""
    check_installed()
    with _silenced(verbose):
        import litert_torch

    images = torch.rand(batch, 3, *size)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), _silenced(verbose):
        file = Path(folder) / "model.tflite"
        try:
            converted = litert_torch.convert(_Named(model).eval(), sample_kwargs={model.input_name: images})
            converted.export(str(file))
        except Exception as error:  # from torch.export, MLIR and the converter, without a common base
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise RtdetrError(f"litert-torch cannot convert this model: {reason}") from error
        return file.read_bytes()


def to_fp16(content: bytes) -> bytes:
    """Weights of two bytes; the interpreter computes in FP32, or in FP16 where the device does."""
    return _quantised(content, _fp16_recipe)


def to_int8(content: bytes, feeds: Iterable[np.ndarray], input_name: str) -> bytes:
    """Convolutions and linear layers before the decoder compute in INT8, those of the decoder have INT8 weights.

    Args:
        feeds: inputs in the file's own shape, for the ranges of the activations.
    """
    return _quantised(content, _int8_recipe, [{input_name: feed} for feed in feeds])


class _Named(nn.Module):
    """A model with named inputs and outputs; torch.export takes over the names of a dictionary."""

    def __init__(self, model: ExportModel | ExportFeatures) -> None:
        super().__init__()
        self.model = model

    def forward(self, **images: Tensor) -> dict[str, Tensor]:
        (image,) = images.values()
        return dict(zip(self.model.output_names, self.model(image), strict=True))


def _quantised(
    content: bytes, recipe: Callable[[Any], None], feeds: list[dict[str, np.ndarray]] | None = None
) -> bytes:
    check_installed()
    with _silenced(False):
        from ai_edge_quantizer import calibrator, quantizer, recipe_manager

        manager = recipe_manager.RecipeManager()
        recipe(manager)
        quantising = quantizer.Quantizer(bytearray(content), manager.get_quantization_recipe())
        mode = calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED  # the other one takes a minute per picture
        ranges = quantising.calibrate({SIGNATURE: feeds}, mode=mode) if feeds else None
        return bytes(quantising.quantize(ranges, enable_progress_report=False).quantized_model)


def _fp16_recipe(manager: Any) -> None:
    from ai_edge_quantizer import algorithm_manager, qtyping

    for name in QUANTISED:
        manager.add_weight_only_config(
            EVERYWHERE, qtyping.TFLOperationName(name), 16, qtyping.QuantGranularity.TENSORWISE,
            algorithm_manager.AlgorithmName.FLOAT_CASTING,
        )  # fmt: skip


def _int8_recipe(manager: Any) -> None:
    from ai_edge_quantizer import qtyping

    for name in QUANTISED:
        manager.add_weight_only_config(EVERYWHERE, qtyping.TFLOperationName(name), 8)
    for name in QUANTISED:
        manager.add_static_config(BEFORE_DECODER, qtyping.TFLOperationName(name), 8, 8)


@contextlib.contextmanager
def _silenced(verbose: bool):
    """The tools' progress reports go nowhere, unless verbose."""
    with quiet(verbose), contextlib.ExitStack() as stack:
        if not verbose:
            nowhere = stack.enter_context(tempfile.TemporaryFile("w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield
