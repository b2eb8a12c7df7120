"""The ONNX file that an engine is built from, and the settings of the build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.graph_interface import GraphInterface
from rtdetr_tool.formats.onnx.file import OnnxFile, parsed, read_onnx
from rtdetr_tool.formats.precision import is_quantized
from rtdetr_tool.formats.resolve import resolve
from rtdetr_tool.formats.table import FORMATS, FULL
from rtdetr_tool.formats.tensorrt.export import BuildSettings
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.spec import ExperimentSpec, LoadedSpec


@dataclass
class Source:
    """The ONNX file to build from, with the spec and the classes that apply to it."""

    file: OnnxFile
    spec: ExperimentSpec
    class_map: ClassMap | None


def open_source(loaded: LoadedSpec) -> Source:
    """Read the ONNX file and resolve classes and input size, as evaluate does."""
    path = Path(loaded.spec.gen_trt_engine.onnx_file)
    if path.suffix.lower() not in FORMATS["onnx"].suffixes:
        raise UserError(
            f"gen_trt_engine.onnx_file: {path} is invalid; expected an ONNX file (.onnx) of `rtdetr export`"
        )
    file = parsed(path, read_onnx(path, weights=loaded.spec.gen_trt_engine.tensorrt.data_type != FULL))
    if loaded.spec.gen_trt_engine.tensorrt.data_type == "INT8" and is_quantized(file.model):
        raise UserError(
            f"gen_trt_engine.tensorrt.data_type: {path} is already quantized; expected FP32 or FP16, the precision of "
            "its other layers"
        )
    check_input(loaded, file.interface, path)
    spec, class_map = resolve(file.recorded, loaded)
    return Source(file, spec, class_map)


def check_input(loaded: LoadedSpec, interface: GraphInterface, path: Path) -> None:
    """UserError if TAO's fields for the input are set and do not match the ONNX file."""
    given = loaded.explicit.get("gen_trt_engine") or {}
    height, width = interface.size
    actual = {"input_channel": interface.channels, "input_height": height, "input_width": width}
    for name, value in actual.items():
        if given.get(name) not in (None, value):
            raise UserError(
                f"gen_trt_engine.{name}: {given[name]} is invalid; expected {value}, because the inputs of {path} are "
                f"{interface.channels} x {height} x {width} (channels, height, width). Remove the field, or export the "
                "checkpoint at that size."
            )


def build_settings(loaded: LoadedSpec, interface: GraphInterface) -> BuildSettings:
    """Profile and limits; a graph with a fixed batch size is only checked against batch sizes that the user set."""
    section = loaded.spec.gen_trt_engine
    names = ("min_batch_size", "opt_batch_size", "max_batch_size")
    given = (loaded.explicit.get("gen_trt_engine") or {}).get("tensorrt") or {}
    if section.batch_size > 0:
        batches: list[int | None] = [section.batch_size] * 3
    elif interface.batch is None:
        batches = [getattr(section.tensorrt, name) for name in names]
    else:
        batches = [given.get(name) for name in names]
    low, opt, high = batches
    settings = BuildSettings(
        min_batch=low,
        opt_batch=opt,
        max_batch=high,
        workspace_mb=section.tensorrt.workspace_size,
        timing_cache=Path(section.timing_cache) if section.timing_cache else None,
        verbose=section.verbose,
        gpu_id=section.gpu_id,
        compute_capabilities=tuple(section.compute_capability),
    )
    settings.batches(interface.batch)
    return settings
