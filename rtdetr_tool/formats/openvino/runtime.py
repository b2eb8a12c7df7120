"""An OpenVINO file on the CPU."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.formats.base import OpenRequest
from rtdetr_tool.formats.batching import BatchLimits, run_in_batches
from rtdetr_tool.formats.graph_tensors import names_to_run, predictions_of, to_graph
from rtdetr_tool.formats.openvino.file import OpenvinoFile, weights_path
from rtdetr_tool.formats.openvino.library import core, reason_of
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Predictions
from rtdetr_tool.spec import ExperimentSpec

if TYPE_CHECKING:
    import openvino


def build_runtime(
    file: OpenvinoFile, spec: ExperimentSpec, class_map: ClassMap | None, request: OpenRequest
) -> OpenvinoRuntime:
    return OpenvinoRuntime(file, class_map)


logger = logging.getLogger(__name__)

_CPUINFO = Path("/proc/cpuinfo")


class OpenvinoRuntime:
    """A detector's OpenVINO file; batches of a static batch size are padded and cut.

    A graph with a dynamic batch is compiled for the size of the first batch when it comes, because OpenVINO is faster
    when it knows the size, and once more for all other sizes. Failures to compile are errors of `predict` then.

    OpenVINO would compute every file in bfloat16 where the CPU has fast instructions for it. Here only files that were
    exported as BF16 do; all others compute in FP32, INT8 ones except for their quantized layers.
    """

    def __init__(self, file: OpenvinoFile, class_map: ClassMap | None = None) -> None:
        import openvino

        self.class_map = class_map
        self.interface, self.outputs = file.interface, names_to_run(file.interface)
        if file.description.get("precision") == "INT8" and lacks_vnni():
            logger.warning(
                "%s: this processor has no VNNI instructions, without which OpenVINO's INT8 sums saturate and scores "
                "change; use FP32, or a processor with VNNI (Intel since Cascade Lake, AMD since Zen 4)", file.path
            )  # fmt: skip
        if file.description.get("precision") == "BF16" and lacks_bfloat16():
            logger.warning(
                "%s: this processor has no bfloat16 instructions, without which a BF16 file is many times slower than "
                "an FP32 one; export it as FP32, or as INT8", file.path
            )  # fmt: skip
        self._precision = "bf16" if file.description.get("precision") == "BF16" else "f32"
        self.name = f"OpenVINO {openvino.__version__.split('-')[0]}{' (bf16)' if self._precision == 'bf16' else ''}"
        self.input_size = file.interface.size
        self.limits = BatchLimits(file.interface.batch or 1, file.interface.batch)
        self.device = torch.device("cpu")
        self._path, self._model = file.path, file.model
        self._first = file.interface.batch  # size of the first batch
        self._requests: dict[int | None, openvino.InferRequest] = {}  # None: any size
        if self._first is not None:
            self._request(self._first)

    def predict(self, images: Tensor) -> Predictions:
        images = to_graph(images, self.interface.layout)
        return predictions_of(run_in_batches(images, self.limits, self._run), self.interface)

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        feed = {self.interface.layout.input: images.to(torch.float32).contiguous().numpy()}
        request = self._request(len(images))
        try:
            outputs = request.infer(feed)
        except RuntimeError as error:
            raise self._failure(error) from error
        return {name: torch.from_numpy(outputs[name].copy()) for name in self.outputs}

    def _request(self, batch: int) -> openvino.InferRequest:
        """The compiled graph for batches of this size."""
        self._first = self._first or batch
        size = batch if batch == self._first else None
        if size not in self._requests:
            try:
                fixed = size is not None and self.interface.batch is None
                model = with_batch(self._model, self.interface.layout.input, size) if fixed else self._model
                self._requests[size] = compiled(model, self._precision).create_infer_request()
            except RuntimeError as error:
                raise self._failure(error) from error
        return self._requests[size]

    def _failure(self, error: RuntimeError) -> CheckpointError:
        return CheckpointError(f"{self.name} cannot run {self._path}: {reason_of(error)}")


def lacks_vnni() -> bool:
    """Whether this is known to be an x86 processor without VNNI; only Linux tells."""
    return _lacks("vnni")


def lacks_bfloat16() -> bool:
    """Whether this is known to be an x86 processor without instructions for bfloat16; only Linux tells."""
    return _lacks("avx512_bf16", "amx_bf16", "avx_ne_convert")


def _lacks(*names: str) -> bool:
    try:
        text = _CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return False
    return "\nflags" in text and not any(name in text for name in names)


def with_batch(model: openvino.Model, name: str, size: int | None) -> openvino.Model:
    """A copy whose input `name` has batches of this size."""
    copy = model.clone()
    copy.reshape({name: [size, *list(copy.input(name).partial_shape)[1:]]})
    return copy


def compiled(model: openvino.Model, precision: str) -> openvino.CompiledModel:
    """A graph on the CPU with as many threads as torch has."""
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
    return core().compile_model(model, "CPU", settings)


def run_once(path: Path, images: Tensor) -> dict[str, Tensor]:
    """Every output of a file with one input for `images`, which are passed as they are."""
    result = compiled(core().read_model(path, weights_path(path)), "f32")(images.numpy())
    return {name: torch.from_numpy(value.copy()) for port, value in result.items() for name in port.names}
