"""A TFLite file in the LiteRT interpreter, on the CPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rtdetr_tool.errors import CheckpointError, UserError
from rtdetr_tool.formats.batching import BatchLimits, run_in_batches
from rtdetr_tool.formats.graph_interface import Shape, read_interface
from rtdetr_tool.formats.graph_tensors import names_to_run, predictions_of, to_graph
from rtdetr_tool.formats.tflite.file import read_tflite
from rtdetr_tool.messages import first_line
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Predictions

PIP_COMMAND = "pip install ai-edge-litert"


class LiteRtRuntime:
    """A detector's TFLite file; its one batch is filled up and cut to size.

    Args:
        threads: of the interpreter; None = as many as torch uses.

    Raises:
        CheckpointError: the file is missing, damaged, or no detector.
        UserError: the interpreter is not installed.
    """

    def __init__(self, path: str | Path, class_map: ClassMap | None = None, threads: int | None = None) -> None:
        self.path, self.class_map = Path(path), class_map
        self.description = read_tflite(path)
        self._runner, version = open_file(self.path, threads)
        inputs, outputs = self._runner.get_input_details(), self._runner.get_output_details()
        self.interface = read_interface(_shapes(inputs), _shapes(outputs), self.description, path)
        self.outputs = names_to_run(self.interface)
        for name in (self.interface.layout.input, *self.outputs):
            kind = {**inputs, **outputs}[name]["dtype"]
            if kind is not np.float32:
                raise CheckpointError(f"{path}: {name} is of type {np.dtype(kind).name}; float32 is expected")
        self.name = f"LiteRT {version}"
        self.input_size = self.interface.size
        batch = self.interface.batch or 1
        self.limits = BatchLimits(batch, batch)
        self.device = torch.device("cpu")

    def predict(self, images: Tensor) -> Predictions:
        images = to_graph(images, self.interface.layout)
        return predictions_of(run_in_batches(images, self.limits, self._run), self.interface)

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self._runner(**{self.interface.layout.input: images.to(torch.float32).contiguous().numpy()})
        return {name: torch.from_numpy(outputs[name].copy()) for name in self.outputs}


def open_file(path: Path, threads: int | None = None) -> tuple[Any, str]:
    """A function from named arrays to named arrays, and the version of the interpreter."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise UserError(f"{path} needs the LiteRT interpreter, which is not installed: {PIP_COMMAND}")
    import ai_edge_litert
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(str(path), num_threads=threads or torch.get_num_threads())
        interpreter.allocate_tensors()
        return interpreter.get_signature_runner(), ai_edge_litert.__version__
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"LiteRT {ai_edge_litert.__version__} cannot run {path}: {first_line(error)}") from error


def run_once(path: Path, images: Tensor) -> dict[str, Tensor]:
    """Every output of a file with one input, which takes `images` as they are."""
    runner, _ = open_file(path)
    (name,) = runner.get_input_details()
    return {name: torch.from_numpy(found.copy()) for name, found in runner(**{name: images.numpy()}).items()}


def _shapes(details: dict[str, dict[str, Any]]) -> dict[str, Shape]:
    return {
        name: tuple(int(side) if side >= 0 else None for side in each["shape_signature"])
        for name, each in details.items()
    }
