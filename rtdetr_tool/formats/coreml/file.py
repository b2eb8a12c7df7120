"""Core ML packages of detectors: a folder with the program (`.mlmodel`), its weights and a manifest.

The description is in the program's metadata, key by key as in an ONNX file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtdetr_tool.errors import CheckpointError, UserError
from rtdetr_tool.files import read_limited
from rtdetr_tool.formats.base import OpenRequest
from rtdetr_tool.formats.coreml.library import coremltools
from rtdetr_tool.formats.description import from_texts
from rtdetr_tool.formats.graph_file import GraphFile
from rtdetr_tool.formats.graph_interface import Shape, read_interface
from rtdetr_tool.formats.table import FORMATS
from rtdetr_tool.messages import first_line

MANIFEST = "Manifest.json"
PROGRAM, WEIGHTS = Path("Data/com.apple.CoreML/model.mlmodel"), Path("Data/com.apple.CoreML/weights")
LARGEST_PROGRAM = 2**28  # bytes without weights; a detector's has less than 1 MB


@dataclass(frozen=True)
class CoremlFile(GraphFile):
    """A detector's package whose specification has been read.

    Args:
        spec: the specification (`Model_pb2.Model`), without the weights.
    """

    spec: Any


def read(path: str | Path, request: OpenRequest | None = None) -> CoremlFile:
    """Read the specification of a detector's package.

    Args:
        request: given if the package is going to run, which requires macOS.

    Raises:
        CheckpointError: it is missing, damaged or no detector.
        UserError: coremltools is not installed, or the package cannot run here.
    """
    path = Path(path)
    check_package(path)
    if request is not None and (reason := FORMATS["coreml"].other_systems()):
        raise UserError(f"{path}: {reason}. On this system, use the checkpoint, or export it to ONNX")
    spec = read_spec(path)
    description = from_texts(spec.description.metadata.userDefined)
    interface = read_interface(_shapes(spec.description.input), _shapes(spec.description.output), description, path)
    return CoremlFile(path, description, interface, spec)


def read_spec(path: Path) -> Any:
    """The specification (`Model_pb2.Model`) in a package; the errors of `read`."""
    FORMATS["coreml"].to_run.require(str(path))
    tools = coremltools()
    spec = tools.proto.Model_pb2.Model()
    try:
        content = read_limited(path / PROGRAM, LARGEST_PROGRAM)
        spec.ParseFromString(content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # DecodeError of protobuf, which has no public name in every version
        raise CheckpointError(f"{path} is not a Core ML package; {PROGRAM}: {first_line(error)}") from error
    if spec.WhichOneof("Type") != "mlProgram":
        raise CheckpointError(f"{path} contains a {spec.WhichOneof('Type')}; expected an ML Program.")
    return spec


def check_package(path: Path) -> None:
    """CheckpointError if a path is no package of Core ML."""
    if not path.exists():
        raise CheckpointError(f"There is no Core ML package at {path}.")
    missing = [str(name) for name in (MANIFEST, PROGRAM) if not (path / name).is_file()]
    if missing:
        raise CheckpointError(f"{path} is not a Core ML package: {', '.join(missing)} does not exist.")


def _shapes(features: Any) -> dict[str, Shape]:
    """Name -> shape of inputs or outputs."""
    return {feature.name: tuple(int(side) for side in feature.type.multiArrayType.shape) for feature in features}
