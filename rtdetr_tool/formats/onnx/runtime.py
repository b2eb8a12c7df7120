"""Run an ONNX file in onnxruntime on the CPU, with CUDA, or with onnxruntime's TensorRT provider."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

from rtdetr_tool.catalog import ONNX_PROVIDERS
from rtdetr_tool.checkpoints.published import cache_folder
from rtdetr_tool.errors import CheckpointError, UserError
from rtdetr_tool.files import sha256_of
from rtdetr_tool.formats.base import OpenRequest
from rtdetr_tool.formats.batching import BatchLimits, run_in_batches
from rtdetr_tool.formats.graph_tensors import names_to_run, predictions_of, to_graph
from rtdetr_tool.formats.onnx.binding import BoundSession
from rtdetr_tool.formats.onnx.file import OnnxFile, load_weights
from rtdetr_tool.formats.onnx.half_emulation import HALF, emulate_half
from rtdetr_tool.formats.onnx.session import explain_memory, new_session, options_for
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Predictions
from rtdetr_tool.spec import ExperimentSpec

logger = logging.getLogger(__name__)

FALLBACKS = {"cpu": ("cpu",), "cuda": ("cuda", "cpu"), "tensorrt": ("tensorrt", "cuda", "cpu")}


def build_runtime(
    file: OnnxFile, spec: ExperimentSpec, class_map: ClassMap | None, request: OpenRequest
) -> OnnxRuntime:
    return OnnxRuntime(file, class_map, request.device, request.onnx_provider)


class OnnxRuntime:
    """A detector's graph; with a static batch size, batches are padded and cropped.

    On the CPU, graphs with FP16 parts run with `emulate_half`: onnxruntime would compute them in FP32, so that their
    score would differ from that on a GPU.

    Args:
        provider: cpu, cuda, tensorrt, or auto: CUDA if `device` is a GPU and onnxruntime can use it, else the CPU.
        threads: threads per operator; None = as many as torch has, like the other runtimes on a CPU.
    """

    def __init__(
        self,
        file: OnnxFile,
        class_map: ClassMap | None = None,
        device: torch.device | str = "cpu",
        provider: str = "auto",
        threads: int | None = None,
        options: onnxruntime.SessionOptions | None = None,
    ) -> None:
        selected = choose_provider(provider, torch.device(device))
        half = emulated_half(file) if selected == "cpu" else None
        options = options or options_for(file.model)
        options.log_severity_level = 4  # errors come back as exceptions
        options.intra_op_num_threads = threads or torch.get_num_threads()
        index = torch.device(device).index or 0
        on_gpu = selected != "cpu" and torch.cuda.is_available()
        self.device = torch.device("cuda", index) if on_gpu else torch.device("cpu")
        stream = torch.cuda.Stream(self.device) if on_gpu else None
        if selected != "cpu" and hasattr(onnxruntime, "preload_dlls"):  # since 1.21
            onnxruntime.preload_dlls()  # those of torch, where onnxruntime finds no other CUDA libraries
        cache = engine_cache(file, self.device) if selected == "tensorrt" else None
        pointer = None if stream is None else stream.cuda_stream
        providers = [
            (ONNX_PROVIDERS[each], provider_options(each, index, pointer, cache)) for each in FALLBACKS[selected]
        ]
        try:
            self.session = new_session(half or str(file.path), options, providers)
        except Exception as error:  # onnxruntime's exceptions have no common base
            with_what = (
                f"onnxruntime {onnxruntime.__version__} cannot run {file.path} (operator set {file.interface.opset})"
            )
            raise CheckpointError(f"{with_what}: {_reason(error)}") from error
        used = self.session.get_providers()[0]
        if used != ONNX_PROVIDERS[selected]:
            raise UserError(
                f"onnxruntime could not start {ONNX_PROVIDERS[selected]} and would run on {used}; see the messages "
                "above or choose another onnx_provider"
            )
        self.name = f"onnxruntime {onnxruntime.__version__} ({selected}{', FP16 emulated' if half else ''})"
        self.class_map = class_map
        self.interface, self.outputs = file.interface, names_to_run(file.interface)
        self.input_size = file.interface.size
        self.limits = BatchLimits(file.interface.batch or 1, file.interface.batch)
        self._pads = selected == "tensorrt" and file.interface.batch is None
        self._bound = BoundSession(self.session, self.outputs, self.device, stream)

    def predict(self, images: Tensor) -> Predictions:
        images = to_graph(images, self.interface.layout)
        if self._pads:  # a smaller last batch would make TensorRT build another engine
            self.limits = BatchLimits(max(self.limits.smallest, len(images)))
        return predictions_of(run_in_batches(images, self.limits, self._run), self.interface)

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        try:
            return self._bound.run(images)
        except Exception as error:
            raise CheckpointError(f"onnxruntime failed on a batch of {list(images.shape)}: {_reason(error)}") from error


def run_once(path: Path, images: Tensor) -> dict[str, Tensor]:
    """All outputs of a graph with one input for `images`, which are passed unchanged."""
    session = new_session(str(path), onnxruntime.SessionOptions(), [ONNX_PROVIDERS["cpu"]])
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, {session.get_inputs()[0].name: images.numpy()})
    return dict(zip(names, map(torch.from_numpy, outputs), strict=True))


def emulated_half(file: OnnxFile) -> bytes | None:
    """The graph with its FP16 parts emulated; None if it has none."""
    graph = file.model.graph
    constants = any(tensor.data_type == HALF for tensor in graph.initializer)
    casts = any(a.name == "to" and a.i == HALF for node in graph.node for a in node.attribute)
    if not constants and not casts:
        return None
    content: bytes = emulate_half(load_weights(file)).SerializeToString()
    return content


def provider_options(name: str, index: int, stream: int | None = None, cache: Path | None = None) -> dict[str, str]:
    """Options of a provider on the GPU `index`.

    cuDNN's heuristics replace onnxruntime's default, an exhaustive search that it repeats for every new batch size.

    Args:
        stream: address of the CUDA stream to run in; None = onnxruntime's own.
        cache: folder in which TensorRT keeps the engines of this graph, whose building takes minutes.
    """
    if name == "cpu":
        return {}
    options = {"device_id": str(index)} | ({"user_compute_stream": str(stream)} if stream else {})
    if name == "cuda":
        options["cudnn_conv_algo_search"] = "HEURISTIC"
    elif cache is not None:
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache)}
        options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(cache)}
    return options


def engine_cache(file: OnnxFile, device: torch.device) -> Path | None:
    """The folder for engines of a graph on a GPU, or None if it cannot be created.

    onnxruntime recognizes an engine by the graph's names and operators, not by its weights: engines of a model that was
    trained further would be used with the old weights. So each content of a file has a folder.
    """
    entries = (entry for tensor in file.model.graph.initializer for entry in tensor.external_data)
    names = sorted({entry.value for entry in entries if entry.key == "location"})
    contents = [sha256_of(path) for path in (file.path, *(file.path.parent / name for name in names))]
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "unknown"
    key = hashlib.sha256("\n".join([*contents, gpu, onnxruntime.__version__]).encode()).hexdigest()[:32]
    folder = cache_folder() / "onnxruntime_engines" / key
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        logger.warning("Not keeping TensorRT engines: cannot create %s: %s", folder, error)
        return None
    logger.info("TensorRT engines of %s are kept in %s", file.path, folder)
    return folder


def choose_provider(name: str, device: torch.device) -> str:
    """cpu, cuda or tensorrt.

    Raises:
        UserError: this onnxruntime does not have the provider.
    """
    available = onnxruntime.get_available_providers()
    if name == "auto":
        return "cuda" if device.type == "cuda" and ONNX_PROVIDERS["cuda"] in available else "cpu"
    if ONNX_PROVIDERS[name] not in available:
        raise UserError(
            f"onnx_provider: this onnxruntime has no {ONNX_PROVIDERS[name]} (it has {', '.join(available)}); "
            "for a GPU: pip uninstall onnxruntime && pip install onnxruntime-gpu"
        )
    return name


def _reason(error: Exception) -> str:
    """The message of onnxruntime without error code and source location."""
    if explained := explain_memory(error):
        return explained
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    text = re.sub(r"\S*onnxruntime_src\S+:\d+ .*?\) (?=[A-Z])", "", text)
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[0][:400] if lines else type(error).__name__
