"""Check that OpenVINO computes an INT8 graph as it is written.

Two correct computations of an INT8 graph differ too: sums that are rounded differently become other 8-bit values here
and there, and over many layers this adds up to as much as the quantization itself changes. So OpenVINO's outputs are
not compared with onnxruntime's; the errors of both, relative to the graph in FP32, are. They are equally large unless
one is wrong. All decode the queries that FP32 selects, because others cannot be compared.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.formats.export_request import ExportRequest
from rtdetr_tool.formats.graph_tensors import to_graph
from rtdetr_tool.formats.openvino.library import core, reason_of
from rtdetr_tool.formats.openvino.runtime import compiled, lacks_vnni
from rtdetr_tool.formats.precision.graph import Graph
from rtdetr_tool.formats.precision.observe import exposing, open_session, run_session

logger = logging.getLogger(__name__)

Array = NDArray[np.generic]
Feed = Mapping[str, Array]

LARGEST_RATIO = 1.5
NEGLIGIBLE = 1e-3  # error of an output relative to the spread of its values, at which the ratio does not matter


def check_agreement(request: ExportRequest, full: onnx.ModelProto, quantized: onnx.ModelProto) -> float:
    """`error_ratio` on the images of the comparison with PyTorch.

    Raises:
        RtdetrError: it is too large, or OpenVINO cannot run the graph.
    """
    import openvino

    version = openvino.__version__.split("-")[0]
    reference = request.reference
    batches = (
        to_graph(part, request.model.layout).contiguous().numpy()
        for part in reference.images.split(reference.batches[0])
    )
    try:
        ratio = error_ratio(full, quantized, batches)
    except RuntimeError as error:
        raise RtdetrError(f"OpenVINO {version} cannot run this model in INT8: {reason_of(error)}") from error
    logger.info("OpenVINO's INT8 outputs differ from FP32's %.2f times as much as onnxruntime's", ratio)
    if not ratio <= LARGEST_RATIO:
        remedy = "Use export.openvino.data_type=FP16, or another version of OpenVINO."
        if lacks_vnni():
            remedy = (
                "This processor has no VNNI instructions, without which OpenVINO's INT8 sums saturate. Use "
                "export.openvino.data_type=FP16, or export on a processor with VNNI."
            )
        raise RtdetrError(
            f"{request.target} was not written: OpenVINO {version} computes it wrongly in INT8. Its outputs differ "
            f"from FP32's {ratio:.1f} times as much as onnxruntime's of the same graph, but at most {LARGEST_RATIO} "
            f"times is expected. {remedy}"
        )
    return round(ratio, 3)


def error_ratio(full: onnx.ModelProto, quantized: onnx.ModelProto, batches: Iterable[NDArray[np.float32]]) -> float:
    """The mean error of an output of `quantized` in OpenVINO divided by that in onnxruntime; the largest of all.

    Errors are absolute differences to `full`, the same graph in FP32; the scores that queries are selected by count as
    an output. `batches` are of one size, as the graph reads them. NaN if OpenVINO's outputs are.
    """
    graph = Graph(full)
    selections = {
        node.output[1]: node.input[0]
        for node in graph.nodes
        if node.op_type == "TopK" and graph.readers[node.output[1]]
    }
    names, image = list(dict.fromkeys([*graph.outputs, *selections.values()])), graph.inputs[0]
    in_full = open_session(exposing(graph.model, [*names, *selections]), optimize=False)
    run_both, totals = None, np.zeros((2, len(names)))
    for images in batches:
        values = run_session(in_full, [*names, *selections], {image: images})
        # OpenVINO refuses the type of onnxruntime's arrays, which is not numpy's int64 but equal to it.
        selected = {name: value.astype(np.int64) for name, value in zip(selections, values[len(names) :], strict=True)}
        run_both = run_both or _opened(_with_inputs(exposing(quantized, names), selected), names)
        for row, results in zip(totals, run_both({image: images, **selected}), strict=True):
            row += [_error(result, value) for result, value in zip(results, values, strict=False)]
    return float(np.max(totals[0] / totals[1]))


def _error(actual: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """Mean absolute difference where `expected` is finite, plus what is negligible, relative to its spread."""
    finite = np.isfinite(expected)
    values = expected[finite]
    spread = float(np.abs(values - values.mean()).mean())
    return float(np.abs(actual[finite] - values).mean()) / max(spread, 1e-12) + NEGLIGIBLE


def _with_inputs(model: onnx.ModelProto, selected: Mapping[str, NDArray[np.int64]]) -> onnx.ModelProto:
    """The model that reads these outputs of its TopK nodes as inputs."""
    for node in model.graph.node:
        if node.op_type == "TopK" and node.output[1] in selected:
            node.output[1] += "/unused"
    model.graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.INT64, value.shape) for name, value in selected.items()
    )
    return model


def _opened(model: onnx.ModelProto, names: Sequence[str]) -> Callable[[Feed], tuple[list[Array], list[Array]]]:
    """A function from inputs to the outputs `names` in OpenVINO and in onnxruntime."""
    session = open_session(model, optimize=False)
    request = compiled(core().read_model(model.SerializeToString()), "f32").create_infer_request()

    def run(feed: Feed) -> tuple[list[Array], list[Array]]:
        results = request.infer(feed)
        return [results[name] for name in names], run_session(session, names, feed)

    return run
