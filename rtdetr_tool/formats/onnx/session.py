"""Sessions of onnxruntime with limited memory on the CPU.

A small graph can compute tensors of any size, such as an Expand to 100 GB whose shape depends on the image. The memory
of all sessions of a process comes from one pool with a limit, and a graph that needs more stops with an error.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

logger = logging.getLogger(__name__)

MEMORY_SHARE = 0.75  # of the memory of this machine or container
_SMALLEST_LIMIT = 1 << 30  # bytes
# Removes a Relu before a QuantizeLinear whose zero point is the type's lowest value. onnxruntime (1.31 at least) takes
# the zero of FP8 for that value, so negative numbers would come through.
_WRONG_FOR_FP8 = ["ReluQuantRewrite"]
_FP8 = (onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2)
_GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_TOO_LARGE = re.compile(r"Available memory of \d+ is smaller than requested bytes of (\d+)")


def new_session(
    model: bytes | str, options: onnxruntime.SessionOptions, providers: Sequence[Any]
) -> onnxruntime.InferenceSession:
    """A session for a serialized graph or the path of a file, within the memory limit."""
    if _limit_memory():
        options.add_session_config_entry("session.use_env_allocators", "1")
    return onnxruntime.InferenceSession(model, options, providers=list(providers), disabled_optimizers=_WRONG_FOR_FP8)


def plain_options() -> onnxruntime.SessionOptions:
    """Session options under which a CPU executes Q/DQ nodes one by one, instead of as fused integer kernels."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def options_for(model: onnx.ModelProto) -> onnxruntime.SessionOptions:
    """Session options for a graph: INT8 in fused integer kernels, FP8 and weights-only graphs without them.

    onnxruntime has no FP8 kernels and refuses the graph that its own fusion makes. For 8-bit weights with FP32
    activations, its fused kernel rounds the activations too, and is slower (R18 at 160 px on two cores: 118 against
    82 ms).
    """
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    dequantized = any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    fp8 = any(tensor.data_type in _FP8 for tensor in model.graph.initializer)
    return plain_options() if fp8 or (dequantized and not quantizers) else onnxruntime.SessionOptions()


def memory_limit() -> int:
    """The largest number of bytes that graphs may use on the CPU."""
    return max(int(MEMORY_SHARE * _machine_memory()), _SMALLEST_LIMIT)


def explain_memory(error: Exception) -> str | None:
    """The message for an error of a session that reached the limit; None for any other error."""
    match = _TOO_LARGE.search(str(error))
    if match is None:
        return None
    needed, limit = int(match.group(1)) / 1e9, memory_limit() / 1e9
    return (
        f"the graph needs {needed:.1f} GB for one tensor, but graphs may use {limit:.1f} GB in total "
        f"({MEMORY_SHARE:.0%} of the memory). Use a smaller batch size, and check that the graph is a detector"
    )


@functools.cache
def _limit_memory() -> bool:
    """Register onnxruntime's memory pool, once per process; False if it cannot be limited."""
    try:
        memory = onnxruntime.OrtMemoryInfo(
            "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
        )
        onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg({"max_mem": memory_limit()}))
    except Exception as error:  # other versions; or another library of this process has registered a pool
        logger.debug("onnxruntime's memory is not limited: %s", error)
        return False
    return True


def _machine_memory() -> int:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        total = 16 << 30
    for file in map(Path, _GROUP_LIMITS):
        try:
            total = min(total, int(file.read_text()))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return total
