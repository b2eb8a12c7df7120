"""From a detector to an ONNX graph: traced, brought to the wanted operator set, simplified, checked."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

import onnx
import onnxslim
import torch
from onnx import version_converter
from torch import nn

from rtdetr_tool.checkpoints.onnx_file import INPUT
from rtdetr_tool.deploy.elementary import elementary_operators
from rtdetr_tool.deploy.precision.graph import opset_of
from rtdetr_tool.deploy.wrapper import ExportModel
from rtdetr_tool.errors import UserError

logger = logging.getLogger(__name__)

OLDEST_OPSET = 12
NATIVE_OPSET = 16  # from here on ONNX has GridSample
LARGEST = 2**31 - 2**24  # bytes of weights that one protobuf file can hold, with room for the graph
NEWEST_TRACED = 20  # the exporter's own limit; newer sets are reached by ONNX's version converter


def export_graph(
    model: ExportModel, size: tuple[int, int], batch: int | None, opset: int, verbose: bool = False
) -> onnx.ModelProto:
    """The graph of `model` for inputs of `size` (height, width); `batch` None makes axis 0 dynamic.

    The static and the dynamic graph are traced with a batch of 2 in the dynamic case, so that no size-1 axis is taken
    for a constant.

    Raises:
        UserError: when this operator set cannot be had, or the weights do not fit into one file.
    """
    weights = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    if weights > LARGEST:
        raise UserError(
            f"This model has {weights / 1e9:.1f} GB of weights; one ONNX file holds at most {LARGEST / 1e9:.1f} GB. "
            "Export a smaller backbone; evaluate and inference run the checkpoint as it is."
        )
    device = next(model.parameters()).device
    images = torch.rand(batch or 2, 3, *size, device=device)
    graph = trace(model, images, min(opset, NEWEST_TRACED), dynamic=batch is None, verbose=verbose)
    if opset > NEWEST_TRACED:
        graph = convert_opset(graph, opset)
    graph = simplify(graph)
    name_axes(graph, batch)
    onnx.checker.check_model(graph, full_check=True)
    found = opset_of(graph)
    if found != opset:
        raise UserError(f"export.opset_version: asked for {opset}, the exporter gave {found}; choose that or less")
    return graph


def trace(model: nn.Module, images: torch.Tensor, opset: int, dynamic: bool, verbose: bool) -> onnx.ModelProto:
    if not opset >= OLDEST_OPSET:
        raise UserError(f"export.opset_version: {opset} is not allowed; allowed: {OLDEST_OPSET} or newer")
    names = list(model.output_names)
    axes = {name: {0: "batch"} for name in (INPUT, *names)} if dynamic else None
    buffer = io.BytesIO()
    older = elementary_operators() if opset < NATIVE_OPSET else contextlib.nullcontext()
    try:
        with torch.no_grad(), quiet(verbose), older:
            torch.onnx.export(
                model.eval(),
                (images,),
                buffer,
                input_names=[INPUT],
                output_names=names,
                dynamic_axes=axes,
                opset_version=opset,
                verbose=verbose,
                dynamo=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(f"this model cannot be exported with operator set {opset}: {_first_line(error)}") from error
    return onnx.load_from_string(buffer.getvalue())


def convert_opset(graph: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Raise the operator set with ONNX's own converter."""
    try:
        return version_converter.convert_version(graph, opset)
    except Exception as error:
        raise UserError(
            f"export.opset_version: the graph cannot be brought to {opset} ({_first_line(error)}); allowed: "
            f"{OLDEST_OPSET} to {NEWEST_TRACED}"
        ) from error


def simplify(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Constants folded, shape computations and no-ops removed."""
    with quiet(False):
        return onnxslim.slim(graph)


def name_axes(graph: onnx.ModelProto, batch: int | None) -> None:
    """State every axis of inputs and outputs that is known; the dynamic one is called `batch` everywhere."""
    for value in (*graph.graph.input, *graph.graph.output):
        axis = value.type.tensor_type.shape.dim[0]
        axis.Clear()
        if batch is None:
            axis.dim_param = "batch"
        else:
            axis.dim_value = batch


@contextlib.contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """Nothing on the console unless verbose: warnings about shapes that are meant to be constants, and the whole graph,
    which the exporter's C++ part prints to standard error when it meets an operator it does not know."""
    if verbose:
        yield
        return
    sys.stderr.flush()
    with warnings.catch_warnings(), tempfile.TemporaryFile() as said:
        warnings.simplefilter("ignore")
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
