"""Run a graph on calibration images and observe its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
import torch

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.onnx.half_emulation import FLOAT
from rtdetr_tool.formats.onnx.session import explain_memory, new_session, plain_options
from rtdetr_tool.formats.precision.graph import opset_of
from rtdetr_tool.messages import first_line

MEMORY = 1 << 30  # bytes of tensors of one image that are observed in one run


def scoring_options() -> onnxruntime.SessionOptions:
    """Session options with which a CPU executes Q/DQ nodes literally.

    onnxruntime's fused integer kernels for CPUs round and saturate differently than TensorRT's. FP16 graphs also need
    `emulate_half`, because there is no option for them.
    """
    return plain_options()


def open_session(model: onnx.ModelProto, optimize: bool = True) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the CPU with as many threads as torch has."""
    options = scoring_options()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_ENABLE_BASIC
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised as exceptions
    try:
        return new_session(model.SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises one class per status code
        reason = explain_memory(error) or first_line(error)
        raise UserError(f"onnxruntime cannot load the graph: {reason}") from error


class RunFailed(UserError):
    """A loaded graph failed at one of its nodes."""


def run_session(
    session: onnxruntime.InferenceSession, names: Sequence[str] | None, inputs: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """The outputs `names` of an opened graph.

    Raises:
        RunFailed: a node cannot be computed; the message names it.
    """
    try:
        outputs: list[np.ndarray] = session.run(names, dict(inputs))
        return outputs
    except Exception as error:  # onnxruntime raises one class per status code
        raise RunFailed(failed_node(error)) from error


def failed_node(error: Exception) -> str:
    """Operator, node and reason from onnxruntime's error, without the source location."""
    match = re.search(r"running (\S+) node\. Name:'([^']*)' Status Message: (.*)", str(error), re.DOTALL)
    if match is None:
        return first_line(error)
    operator, node, reason = match.groups()
    if explained := explain_memory(error):
        return f"{operator} node {node or '(without a name)'}: {explained}"
    reason = re.sub(r"\S*onnxruntime\S*/\S+:\d+ .*?\) (\[with .*?\] )?(?=\S)", "", reason.strip().splitlines()[0])
    return f"{operator} node {node or '(without a name)'}: {reason[:200]}"


def image_input(model: onnx.ModelProto) -> tuple[str, list[int | None]]:
    """Name and shape (None for dynamic axes) of the graph's only input, images [B, 3, H, W]."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != FLOAT:
        names = ", ".join(value.name for value in inputs) or "none"
        raise UserError(f"The graph has the inputs {names}; expected exactly one, float32 images [B, 3, H, W]")
    dims = inputs[0].type.tensor_type.shape.dim
    return inputs[0].name, [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims]


def rebatched(feeds: Iterable[np.ndarray], model: onnx.ModelProto) -> Iterator[np.ndarray]:
    """Images [N, 3, H, W] in the batch size of the graph; one by one if it is dynamic.

    The last batch of a static graph is padded with its own images.
    """
    _, shape = image_input(model)
    batch, waiting = shape[0] or 1, []
    for feed in feeds:
        feed = np.asarray(feed, np.float32)
        wrong = feed.ndim != 4 or any(s not in (None, n) for s, n in zip(shape[1:], feed.shape[1:], strict=False))
        if wrong:
            raise UserError(f"Calibration images have the shape {list(feed.shape)}; the graph expects {shape}")
        for image in feed:
            waiting.append(image)
            if len(waiting) == batch:
                yield np.stack(waiting)
                waiting = []
    if waiting:
        yield np.stack([waiting[i % len(waiting)] for i in range(batch)])


class Observer:
    """Yields named tensors of a graph for each image, in several runs if one would need too much memory."""

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str], memory: int = MEMORY) -> None:
        self.model = model
        self.input, _ = image_input(model)
        self.parts = [part for part in _parts(model, tensors, memory) if part]
        self.sessions = [open_session(exposing(model, part), optimize=False) for part in self.parts]

    def observe(self, image: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Name and value of each tensor for one image [B, 3, H, W]."""
        for part, session in zip(self.parts, self.sessions, strict=True):
            values = run_session(session, part, {self.input: image})
            yield from zip(part, values, strict=True)


def exposing(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """The model with these tensors as its outputs."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    known = {value.name: value for value in model.graph.output}
    del result.graph.output[:]
    result.graph.output.extend(known.get(name, onnx.ValueInfoProto(name=name)) for name in tensors)
    return result


def _parts(model: onnx.ModelProto, tensors: Sequence[str], memory: int) -> list[list[str]]:
    """The tensors in groups of at most `memory` bytes, as far as shape inference determines their sizes."""
    sizes = _sizes(model)
    parts: list[list[str]] = [[]]
    used = 0
    for name in tensors:
        size = sizes.get(name, 0)
        if parts[-1] and used + size > memory:
            parts.append([])
            used = 0
        parts[-1].append(name)
        used += size
    return parts


def _sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Bytes of each float tensor of known shape, for one image if the batch is dynamic."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    for value in single.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].dim_value:
            dims[0].dim_value = 1
    del single.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(single, data_prop=opset_of(single) >= 13)
    sizes = {}
    for value in inferred.graph.value_info:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if all(dims):
            sizes[value.name] = 4 * int(np.prod(dims, dtype=np.int64))
    return sizes
