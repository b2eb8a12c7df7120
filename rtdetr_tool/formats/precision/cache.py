"""The calibration cache: INT8 ranges of one graph as a readable JSON file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import onnx

from rtdetr_tool.errors import UserError
from rtdetr_tool.files import parse_json, read_limited, write_atomically

LARGEST_CACHE = 64 << 20  # bytes
FORMAT = "rtdetr INT8 ranges 1"


@dataclass
class Calibration:
    """Magnitude that INT8 covers per tensor, the method, and the nodes excluded from INT8 by measurement."""

    graph_sha256: str
    method: str
    pictures: int
    ranges: dict[str, float]
    costs: dict[str, float] = field(default_factory=dict)  # of each method on the first images, 0..1
    kept: dict[str, str] = field(default_factory=dict)  # node -> reason
    format: str = FORMAT


def graph_hash(model: onnx.ModelProto) -> str:
    """SHA-256 of the graph without metadata and documentation."""
    bare = onnx.ModelProto()
    bare.graph.CopyFrom(model.graph)
    bare.graph.doc_string = ""
    bare.opset_import.extend(sorted(model.opset_import, key=lambda entry: entry.domain))
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def read_cache(path: str | os.PathLike[str], graph_sha256: str, tensors: Iterable[str]) -> Calibration | None:
    """The calibration in `path`; None if the file does not exist.

    Raises:
        UserError: the file is not a calibration cache, or belongs to another graph.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        data = parse_json(read_limited(path, LARGEST_CACHE))
        cached = Calibration(**data)
        sound = cached.format == FORMAT and all(value >= 0 for value in cached.ranges.values())
    except (OSError, ValueError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise UserError(
            f"{path} is not a calibration cache of this tool (TensorRT's own caches do not fit Q/DQ graphs). "
            "Remove it, or set another gen_trt_engine.tensorrt.calibration.cal_cache_file"
        )
    if cached.graph_sha256 != graph_sha256 or set(tensors) - set(cached.ranges):
        raise UserError(
            f"{path} contains the INT8 ranges of another ONNX graph ({cached.graph_sha256[:12]}, this one is "
            f"{graph_sha256[:12]}). Remove it to calibrate again, or set another "
            "gen_trt_engine.tensorrt.calibration.cal_cache_file"
        )
    return cached


def write_cache(path: str | os.PathLike[str], calibration: Calibration) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asdict(calibration), indent=1) + "\n")
