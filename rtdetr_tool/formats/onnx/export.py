"""From a detector to an ONNX graph: traced, brought to the wanted operator set, simplified, checked."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxslim
import torch
from onnx import version_converter
from torch import nn

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.export_model import ExportFeatures, ExportModel
from rtdetr_tool.formats.onnx.file import fits_one_file
from rtdetr_tool.formats.onnx.opset_fallbacks import elementary_operators
from rtdetr_tool.formats.precision.graph import opset_of
from rtdetr_tool.messages import first_line

logger = logging.getLogger(__name__)

OLDEST_OPSET = 12
NATIVE_OPSET = 16  # from here on ONNX has GridSample
NEWEST_TRACED = 20  # the exporter's own limit; newer sets are reached by ONNX's version converter
LARGE_TENSOR = 2**20  # bytes


def export_graph(
    model: ExportModel | ExportFeatures,
    size: tuple[int, int],
    batch: int | None,
    opset: int,
    verbose: bool = False,
) -> onnx.ModelProto:
    """The graph of `model` for inputs of `size` (height, width); `batch` None makes axis 0 dynamic.

    A dynamic graph is traced with a batch of 2, so that no size-1 axis is taken for a constant. What works on graphs
    (converter, simplifier, checker) sends them through protobuf, which ends at 2 GiB: it sees a model with more weights
    than that without its large tensors.

    Raises:
        UserError: when this operator set cannot be had.
    """
    device = next(model.parameters()).device
    images = torch.rand(batch or 2, 3, *size, device=device)
    graph = trace(model, images, min(opset, NEWEST_TRACED), dynamic=batch is None, verbose=verbose)
    weights = [] if fits_one_file(graph) else detach_weights(graph)
    if opset > NEWEST_TRACED:
        graph = convert_opset(graph, opset)
    graph = simplify(graph)
    onnx.checker.check_model(graph, full_check=True)
    attach_weights(graph, weights)
    name_axes(graph, batch)
    found = opset_of(graph)
    if found != opset:
        raise UserError(f"export.opset_version: asked for {opset}, the exporter gave {found}; choose that or less")
    return graph


def trace(model: nn.Module, images: torch.Tensor, opset: int, dynamic: bool, verbose: bool) -> onnx.ModelProto:
    if not opset >= OLDEST_OPSET:
        raise UserError(f"export.opset_version: {opset} is invalid; expected {OLDEST_OPSET} or newer")
    names = list(model.output_names)
    axes = {name: {0: "batch"} for name in (model.input_name, *names)} if dynamic else None
    older = elementary_operators() if opset < NATIVE_OPSET else contextlib.nullcontext()
    try:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad(), quiet(verbose), older:
            file = Path(folder) / "model.onnx"
            torch.onnx.export(
                model.eval(),
                (images,),
                str(file),
                input_names=[model.input_name],
                output_names=names,
                dynamic_axes=axes,
                opset_version=opset,
                verbose=verbose,
                dynamo=False,
            )
            return onnx.load(file)
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(f"this model cannot be exported with operator set {opset}: {first_line(error)}") from error


def detach_weights(graph: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Make inputs of the large constants; what they were comes back."""
    tensors = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in graph.graph.initializer]
    large = [tensor for tensor in tensors if len(tensor.raw_data) > LARGE_TENSOR]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(tensor for tensor in tensors if len(tensor.raw_data) <= LARGE_TENSOR)
    graph.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in large
    )
    return large


def attach_weights(graph: onnx.ModelProto, weights: list[onnx.TensorProto]) -> None:
    """The reverse of `detach_weights`; what the graph does not use any more stays away."""
    names = {tensor.name for tensor in weights}
    graph.graph.initializer.extend(
        tensor for tensor in weights if tensor.name in {value.name for value in graph.graph.input}
    )
    kept = [value for value in graph.graph.input if value.name not in names]
    del graph.graph.input[:]
    graph.graph.input.extend(kept)


def convert_opset(graph: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Raise the operator set with ONNX's own converter."""
    try:
        return version_converter.convert_version(graph, opset)
    except Exception as error:
        raise UserError(
            f"export.opset_version: the graph cannot be brought to {opset} ({first_line(error)}); allowed: "
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
