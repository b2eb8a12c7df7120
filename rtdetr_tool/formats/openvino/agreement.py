"""Check that OpenVINO computes an INT8 graph as it is written.

Two correct computations of an INT8 graph differ too: sums that are rounded differently become other 8-bit values here
and there, and over many layers this adds up to as much as the quantization itself changes. So OpenVINO's outputs are
not compared with onnxruntime's; the errors of both, relative to the graph in FP32, are. They are equally large unless
one is wrong. All decode the queries that FP32 selects, so that their outputs correspond.

OpenVINO compiles a graph for one batch size differently than for any, and its runtime uses both, so both are checked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.formats.export_request import ExportRequest
from rtdetr_tool.formats.graph_tensors import to_graph
from rtdetr_tool.formats.openvino.library import core, reason_of
from rtdetr_tool.formats.openvino.runtime import compiled, lacks_vnni, with_batch
from rtdetr_tool.formats.precision.graph import Graph
from rtdetr_tool.formats.precision.observe import exposing, open_session, run_session

if TYPE_CHECKING:
    import openvino

logger = logging.getLogger(__name__)

Array = NDArray[Any]
Feed = Mapping[str, Array]

LARGEST_RATIO = 1.5
NEGLIGIBLE = 1e-3  # errors below this share of an output's spread are ignored
_SMALLEST_SPREAD = 1e-3  # of the largest value; the values of some outputs are all alike


def check_agreement(request: ExportRequest, full: onnx.ModelProto, quantized: onnx.ModelProto) -> float:
    """The `error_ratio` on the images of the comparison with PyTorch.

    Raises:
        RtdetrError: the ratio is above `LARGEST_RATIO` or NaN, or OpenVINO cannot run the graph.
    """
    reference = request.reference
    batches = (
        to_graph(part, request.model.layout).contiguous().numpy()
        for part in reference.images.split(reference.batches[0])
    )
    ratio = error_ratio(full, quantized, batches)
    if ratio <= LARGEST_RATIO:
        logger.info("INT8 error in OpenVINO: %.2f times that in onnxruntime", ratio)
        return round(ratio, 3)
    remedy = "Use export.openvino.data_type=FP16, or another version of OpenVINO."
    if lacks_vnni():
        remedy = (
            "This processor has no VNNI instructions, without which OpenVINO's INT8 sums saturate. Use "
            "export.openvino.data_type=FP16, or export on a processor with VNNI."
        )
    reason = f"Its error relative to FP32 is {ratio:.1f} times that of onnxruntime; the limit is {LARGEST_RATIO}."
    raise RtdetrError(
        f"{request.target} was not written: OpenVINO {_version()} computes the INT8 graph incorrectly. "
        f"{'Its outputs are not numbers.' if np.isnan(ratio) else reason} {remedy}"
    )


def error_ratio(full: onnx.ModelProto, quantized: onnx.ModelProto, batches: Iterable[NDArray[np.float32]]) -> float:
    """The mean error of an output of `quantized` in OpenVINO divided by that in onnxruntime; the largest of all.

    Errors are absolute differences to `full`, the same graph in FP32; the scores that queries are selected by count as
    an output. `batches` are of one size, as the graph reads them. NaN if OpenVINO's outputs are.

    Raises:
        RtdetrError: OpenVINO cannot run the graph.
    """
    graph = Graph(full)
    selections = {
        node.output[1]: node.input[0]
        for node in graph.nodes
        if node.op_type == "TopK" and graph.readers[node.output[1]]
    }
    names, image = list(dict.fromkeys([*graph.outputs, *selections.values()])), graph.inputs[0]
    in_full = open_session(exposing(graph.model, [*names, *selections]), optimize=False)
    runs: list[Callable[[Feed], list[Array]]] = []
    totals: list[NDArray[np.float64]] = []  # of each run: onnxruntime, then OpenVINO
    for images in batches:
        values = run_session(in_full, [*names, *selections], {image: images})
        # OpenVINO refuses the type of onnxruntime's arrays, which is not numpy's int64 but equal to it.
        selected = {name: value.astype(np.int64) for name, value in zip(selections, values[len(names) :], strict=True)}
        if not runs:
            model = _with_inputs(exposing(quantized, names), selected)
            session = open_session(model, optimize=False)
            runs = [partial(run_session, session, names), *_in_openvino(model, names, image, len(images))]
            totals = [np.zeros(len(names)) for _ in runs]
        for total, run in zip(totals, runs, strict=True):
            results = run({image: images, **selected})
            total += [_error(result, value) for result, value in zip(results, values, strict=False)]
    return float(np.max([total / totals[0] for total in totals[1:]]))


def _error(actual: Array, expected: Array) -> float:
    """Mean absolute difference where `expected` is finite, plus what is negligible, relative to its spread.

    Channels that are the same for all queries, as that of an added background, do not count.
    """
    counted = np.isfinite(expected)
    if expected.ndim > 2:
        varying = np.ptp(np.where(counted, expected, 0), axis=tuple(range(expected.ndim - 1)), keepdims=True) > 0
        counted &= varying | ~varying.any()
    values = expected[counted]
    if not values.size:
        return NEGLIGIBLE
    spread = max(float(np.abs(values - values.mean()).mean()), _SMALLEST_SPREAD * float(np.abs(values).max()), 1e-12)
    return float(np.abs(actual[counted] - values).mean()) / spread + NEGLIGIBLE


def _with_inputs(model: onnx.ModelProto, selected: Mapping[str, NDArray[np.int64]]) -> onnx.ModelProto:
    """The model that reads these outputs of its TopK nodes as inputs."""
    for node in model.graph.node:
        if node.op_type == "TopK" and node.output[1] in selected:
            node.output[1] += "/unused"
    model.graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.INT64, value.shape) for name, value in selected.items()
    )
    return model


def _in_openvino(
    model: onnx.ModelProto, names: Sequence[str], image: str, batch: int
) -> Iterator[Callable[[Feed], list[Array]]]:
    """Functions from inputs to the outputs `names`: of the graph as it is, and of one for this batch size."""
    with _explained():
        graph = core().read_model(model.SerializeToString())
        dynamic = graph.input(image).partial_shape[0].is_dynamic
        requests = [
            compiled(each, "f32").create_infer_request()
            for each in (graph, *([with_batch(graph, image, batch)] if dynamic else []))
        ]

    def run(request: openvino.InferRequest, feed: Feed) -> list[Array]:
        with _explained():
            results = request.infer(feed)
            return [results[name].copy() for name in names]

    return (partial(run, request) for request in requests)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RtdetrError(f"OpenVINO {_version()} cannot run this model in INT8: {reason_of(error)}") from error


def _version() -> str:
    import openvino

    version: str = openvino.__version__.split("-")[0]
    return version
