"""Convert an ONNX graph with MNN's converter, in a separate process, because it prints a lot and may crash."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.formats.graph_interface import Shape
from rtdetr_tool.formats.mnn.library import library_version

logger = logging.getLogger(__name__)

OPTIONS = {"FP32": (), "FP16": ("--fp16",), "INT8": ("--weightQuantBits", "8")}
_LARGEST = 2**31 - 2**24  # bytes of an ONNX file without a second one
_PROGRAM = "import sys; sys.path[:] = [p for p in sys.path if p]; import _tools; _tools.mnnconvert(sys.argv)"


def save(
    graph: onnx.ModelProto, description: Mapping[str, Any], path: Path, precision: str = "FP32", verbose: bool = False
) -> None:
    """Write an MNN file with weights of `precision`; names, shapes and description are JSON in its `bizCode`.

    Raises:
        RtdetrError: MNN cannot convert the graph.
    """
    if graph.ByteSize() > _LARGEST:
        raise RtdetrError(f"{path.name}: MNN's converter reads ONNX files of up to 2 GiB; this model is larger")
    text = json.dumps({"inputs": _shapes(graph.graph.input), "outputs": _shapes(graph.graph.output),
                       "description": dict(description)})  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        onnx.save(graph, file)
        words = ["-f", "ONNX", "--modelFile", str(file), "--MNNModel", str(path), "--bizCode", text]
        command = [sys.executable, "-c", _PROGRAM, *words, *OPTIONS[precision]]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=folder, check=False)
    if verbose:
        logger.info("%s", (done.stdout + done.stderr).strip())
    if done.returncode or not path.is_file() or not path.stat().st_size:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        reason = lines[-1][:300] if lines else f"its converter ended with {done.returncode}"
        raise RtdetrError(f"MNN {library_version()} cannot convert this model: {reason}")


def _shapes(values: Any) -> dict[str, Shape]:
    """Name -> shape; None is a dynamic axis."""
    return {
        value.name: tuple(
            axis.dim_value if axis.HasField("dim_value") else None for axis in value.type.tensor_type.shape.dim
        )
        for value in values
    }
