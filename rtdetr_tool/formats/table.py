"""The table of formats that can be opened or exported: suffixes, capabilities and required packages.

Everything that depends on the format uses this table: the options of `export.format`, the suffixes that `evaluate`,
`inference` and the Python API open, and messages about missing packages. It does not import torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from rtdetr_tool.errors import UserError

FULL = "FP32"  # the precision in which every file is exported and verified first


@dataclass(frozen=True)
class Packages:
    """Packages that a format requires in addition to those of rtdetr-tool."""

    modules: tuple[str, ...]
    pip_command: str

    def require(self, what: str) -> None:
        """UserError with the pip command if a package is missing; `what` requires them."""
        missing = [name for name in self.modules if find_spec(name) is None]
        if missing:
            raise UserError(f"{what} requires {', '.join(missing)}: {self.pip_command}")


NOTHING = Packages((), "")


@dataclass(frozen=True)
class Format:
    """One row.

    Args:
        name: value of `export.format`.
        title: name in messages and help texts.
        suffixes: suffixes of its files, lower case; export writes the first one.
        package: package with the modules `file`, `runtime` and, if `exported`, `export`.
        trainable: files contain weights that can be trained and exported; other files can only predict.
        exported: `rtdetr export` writes this format.
        dynamic_batch: an exported file can support every batch size.
        detection_outputs: the exported graph can include top-k (`export.include_postprocess`).
        deepstream: DeepStream supports the exported file (`export.serialize_nvdsinfer`).
        companion: name of the file next to it that may have the weights, from its `name` and `stem`.
        directory: what a file consists of if it is a directory; empty = it is a regular file.
        precisions: precisions of exported files; lower ones are set in the section `export.<name>`.
        extra: extra of this package for the export.
        to_export, to_run: packages required for export and for running.
        systems: values of `sys.platform` where files run; empty = everywhere.
        systems_title: these systems, for messages.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    package: str
    trainable: bool = False
    exported: bool = False
    dynamic_batch: bool = False
    detection_outputs: bool = False
    deepstream: bool = False
    companion: str = ""
    directory: tuple[str, ...] = ()
    precisions: tuple[str, ...] = (FULL,)
    extra: str | None = None
    to_export: Packages = NOTHING
    to_run: Packages = NOTHING
    systems: tuple[str, ...] = ()
    systems_title: str = ""

    @property
    def suffix(self) -> str:
        return self.suffixes[0]

    def other_systems(self) -> str | None:
        """Where files run if this system cannot run them: `Core ML packages run on macOS only`; else None."""
        if not self.systems or sys.platform in self.systems:
            return None
        return f"{self.title} {'packages' if self.directory else 'files'} run on {self.systems_title} only"

    def module(self, name: str) -> ModuleType:
        """The module `name` of this format, imported on demand."""
        return import_module(f"{self.package}.{name}")


_FORMATS = (
    Format(
        "torch",
        "PyTorch weights",
        (".pth", ".pt", ".ckpt", ".safetensors"),
        "rtdetr_tool.formats.torch",
        trainable=True,
        dynamic_batch=True,
    ),
    Format(
        "onnx",
        "ONNX",
        (".onnx",),
        "rtdetr_tool.formats.onnx",
        exported=True,
        dynamic_batch=True,
        detection_outputs=True,
        deepstream=True,
        companion="{name}.data",
    ),
    Format(
        "tflite",
        "TFLite",
        (".tflite",),
        "rtdetr_tool.formats.tflite",
        exported=True,
        precisions=(FULL, "FP16", "INT8"),
        extra="tflite",
        to_export=Packages(("litert_torch", "ai_edge_quantizer"), 'pip install "rtdetr-tool[tflite]"'),
        to_run=Packages(("ai_edge_litert",), "pip install ai-edge-litert"),
    ),
    Format(
        "openvino",
        "OpenVINO",
        (".xml",),
        "rtdetr_tool.formats.openvino",
        exported=True,
        dynamic_batch=True,
        companion="{stem}.bin",
        precisions=(FULL, "FP16", "BF16", "INT8"),
        extra="openvino",
        to_export=Packages(("openvino",), 'pip install "rtdetr-tool[openvino]"'),
        to_run=Packages(("openvino",), 'pip install "rtdetr-tool[openvino]"'),
    ),
    Format(
        "coreml",
        "Core ML",
        (".mlpackage",),
        "rtdetr_tool.formats.coreml",
        exported=True,
        directory=("Manifest.json", "Data"),
        precisions=(FULL, "FP16"),
        extra="coreml",
        to_export=Packages(("coremltools",), 'pip install "rtdetr-tool[coreml]"'),
        to_run=Packages(("coremltools",), 'pip install "rtdetr-tool[coreml]"'),
        systems=("darwin",),
        systems_title="macOS, iOS and iPadOS",
    ),
    Format(
        "executorch",
        "ExecuTorch",
        (".pte",),
        "rtdetr_tool.formats.executorch",
        exported=True,
        precisions=(FULL, "INT8"),
        extra="executorch",
        to_export=Packages(("executorch", "torchao"), 'pip install "rtdetr-tool[executorch]"'),
        to_run=Packages(("executorch",), 'pip install "rtdetr-tool[executorch]"'),
    ),
    Format(
        "mnn",
        "MNN",
        (".mnn",),
        "rtdetr_tool.formats.mnn",
        exported=True,
        dynamic_batch=True,
        precisions=(FULL, "FP16", "INT8"),
        extra="mnn",
        to_export=Packages(("MNN", "_tools"), 'pip install "rtdetr-tool[mnn]"'),
        to_run=Packages(("MNN",), 'pip install "rtdetr-tool[mnn]"'),
    ),
    # Built from ONNX by gen_trt_engine. Each engine requires one of two libraries: tensorrt/library.py.
    Format("tensorrt", "TensorRT engine", (".engine", ".plan", ".trt"), "rtdetr_tool.formats.tensorrt"),
)
FORMATS: dict[str, Format] = {row.name: row for row in _FORMATS}


def format_by_suffix(path: str | Path) -> Format | None:
    """The format of a file by its suffix, in upper or lower case; None for any other suffix."""
    suffix = Path(path).suffix.lower()
    return next((row for row in FORMATS.values() if suffix in row.suffixes), None)


def size_of(path: str | Path) -> int:
    """Bytes of a file with the weights next to it, or of all files of a directory."""
    path, row = Path(path), format_by_suffix(path)
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    names = [path.name, *([row.companion.format(name=path.name, stem=path.stem)] if row and row.companion else [])]
    return sum(file.stat().st_size for name in names if (file := path.with_name(name)).is_file())


def exported_formats() -> tuple[Format, ...]:
    return tuple(row for row in FORMATS.values() if row.exported)


def titles(rows: Iterable[Format]) -> str:
    """Titles of formats for a sentence: ONNX or TFLite."""
    *first, last = [row.title for row in rows]
    return f"{', '.join(first)} or {last}" if first else last
