"""Export to ONNX: the detector is traced, converted to the operator set, simplified, checked and verified."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxslim
import torch
from onnx import version_converter

from rtdetr_tool.errors import UserError
from rtdetr_tool.files import sha256_of
from rtdetr_tool.formats.export_model import ExportFeatures, ExportModel
from rtdetr_tool.formats.export_request import ExportRequest
from rtdetr_tool.formats.onnx.file import attach, fits_one_file, parsed, replacing_onnx, weights_file_of
from rtdetr_tool.formats.onnx.opset_fallbacks import fallback_operators
from rtdetr_tool.formats.onnx.runtime import OnnxRuntime, run_once
from rtdetr_tool.formats.precision.graph import opset_of
from rtdetr_tool.formats.verification import Predict
from rtdetr_tool.messages import first_line
from rtdetr_tool.progress import Steps

logger = logging.getLogger(__name__)

OLDEST_OPSET = 12
NATIVE_OPSET = 16  # the first operator set with GridSample
NEWEST_TRACED = 20  # the exporter's own limit; ONNX's version converter converts to newer sets
LARGE_TENSOR = 2**20  # bytes
TRACING, COMPARING = "tracing the graph", "comparing with PyTorch"


def export(request: ExportRequest) -> dict[str, Any]:
    """Verify and write the ONNX file; returns the content of `export.json`."""
    with Steps("Exporting to ONNX", {TRACING: 6, COMPARING: 4}) as steps:
        steps.begin(TRACING)
        graph = graph_of(request)
        steps.begin(COMPARING)
        return _verified(request, graph)


def _verified(request: ExportRequest, graph: onnx.ModelProto) -> dict[str, Any]:
    """Write the graph if it agrees with PyTorch; returns the content of `export.json`."""
    attach(graph, request.description)
    nodes = len(graph.graph.node)

    def predictor(written: Path) -> Predict:
        return OnnxRuntime(replace(parsed(request.target, graph), path=written), provider="cpu").predict

    with replacing_onnx(request.target, graph) as temporary:
        differences = request.verify(temporary, predictor, run_once)
        weights = weights_file_of(temporary)
        return {
            **request.report(temporary, differences),
            "weights_sha256": sha256_of(weights) if weights else None,
            "nodes": nodes,
            "opset": request.section.opset_version,
        }


def graph_of(request: ExportRequest) -> onnx.ModelProto:
    """The graph of a request, for every format that is written from it."""
    section = request.section
    return export_graph(request.model, request.size, request.batch, section.opset_version, section.verbose)


def export_graph(
    model: ExportModel | ExportFeatures,
    size: tuple[int, int],
    batch: int | None,
    opset: int,
    verbose: bool = False,
) -> onnx.ModelProto:
    """The graph of `model` for inputs of `size` (height, width); `batch` None makes axis 0 dynamic.

    A dynamic graph is traced with a batch of 2, so that no size-1 axis becomes a constant. Converter, simplifier and
    checker serialize graphs with protobuf, which is limited to 2 GiB; the large tensors of larger models are detached
    before.

    Raises:
        UserError: the exporter or the converter does not support this operator set.
    """
    device = next(model.parameters()).device
    images = torch.rand(batch or 2, model.detector.num_channels, *size, device=device)
    graph = trace(model, images, min(opset, NEWEST_TRACED), dynamic=batch is None, verbose=verbose)
    weights = [] if fits_one_file(graph) else detach_weights(graph)
    if opset > NEWEST_TRACED:
        graph = convert_opset(graph, opset)
    graph = simplify(graph)
    onnx.checker.check_model(graph, full_check=True)
    attach_weights(graph, weights)
    name_axes(graph, batch)
    opset_found = opset_of(graph)
    if opset_found != opset:
        raise UserError(f"export.opset_version: {opset} is not supported by the exporter; use at most {opset_found}")
    return graph


def trace(
    model: ExportModel | ExportFeatures, images: torch.Tensor, opset: int, dynamic: bool, verbose: bool
) -> onnx.ModelProto:
    if not opset >= OLDEST_OPSET:
        raise UserError(f"export.opset_version: {opset} is invalid; expected {OLDEST_OPSET} or newer")
    names = list(model.output_names)
    axes = {name: {0: "batch"} for name in (model.input_name, *names)} if dynamic else None
    older = fallback_operators() if opset < NATIVE_OPSET else contextlib.nullcontext()
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
    """Replace the large constants by inputs, in place; returns the constants."""
    tensors = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in graph.graph.initializer]
    large = [tensor for tensor in tensors if len(tensor.raw_data) > LARGE_TENSOR]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(tensor for tensor in tensors if len(tensor.raw_data) <= LARGE_TENSOR)
    graph.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in large
    )
    return large


def attach_weights(graph: onnx.ModelProto, weights: list[onnx.TensorProto]) -> None:
    """The inverse of `detach_weights`, for the constants that the graph still uses."""
    names = {tensor.name for tensor in weights}
    graph.graph.initializer.extend(
        tensor for tensor in weights if tensor.name in {value.name for value in graph.graph.input}
    )
    kept = [value for value in graph.graph.input if value.name not in names]
    del graph.graph.input[:]
    graph.graph.input.extend(kept)


def convert_opset(graph: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Convert to a newer operator set with ONNX's own converter."""
    try:
        return version_converter.convert_version(graph, opset)
    except Exception as error:
        raise UserError(
            f"export.opset_version: the graph cannot be converted to {opset} ({first_line(error)}); expected "
            f"{OLDEST_OPSET} to {NEWEST_TRACED}"
        ) from error


def simplify(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants, and remove shape computations and no-ops."""
    with quiet(False):
        slim: onnx.ModelProto = onnxslim.slim(graph)
        return slim


def name_axes(graph: onnx.ModelProto, batch: int | None) -> None:
    """Set the known axes of inputs and outputs; the dynamic axis is always named `batch`."""
    for value in (*graph.graph.input, *graph.graph.output):
        axis = value.type.tensor_type.shape.dim[0]
        axis.Clear()
        if batch is None:
            axis.dim_param = "batch"
        else:
            axis.dim_value = batch


@contextlib.contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """Keep the console quiet unless verbose: no warnings about shapes that become constants, and not the whole graph,
    which the exporter's C++ part prints to standard error if it does not know an operator."""
    if verbose:
        yield
        return
    sys.stderr.flush()
    with warnings.catch_warnings(), tempfile.TemporaryFile() as output:
        warnings.simplefilter("ignore")
        kept = os.dup(2)
        os.dup2(output.fileno(), 2)
        try:
            with _progress_on(kept):
                yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def _progress_on(descriptor: int) -> Iterator[None]:
    """Let Python's `sys.stderr`, where progress is shown, write to another descriptor than 2 meanwhile."""
    if sys.stderr is not sys.__stderr__ or sys.stderr is None:
        yield
        return
    with (
        open(descriptor, "w", encoding=sys.stderr.encoding, errors="replace", closefd=False) as stream,
        contextlib.redirect_stderr(stream),
    ):
        yield
