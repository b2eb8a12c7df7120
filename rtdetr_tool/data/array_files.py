"""Images that Pillow cannot open: arrays (.npy), and TIFF files with any number of bands."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from typing import IO, Any

import numpy as np

from rtdetr_tool.errors import DataError, UserError

ARRAY_SUFFIX = ".npy"
TIFF_SUFFIXES = (".tif", ".tiff")
INSTALL = 'TIFF files with several bands require tifffile: pip install "rtdetr-tool[multispectral]"'
LARGEST_CHANNELS = 512
_NUMPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_ORIENTATION = 274  # TIFF tag, the same as in EXIF


@dataclass(frozen=True)
class ArrayFile:
    """An opened file; `read` returns its values [H, W, C] in their stored type."""

    size: tuple[int, int]  # (width, height) as stored
    channels: int
    orientation: int  # as in EXIF
    read: Callable[[], np.ndarray]


def is_array(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a numpy array."""
    return head.startswith(_NUMPY)


def is_tiff(head: bytes) -> bool:
    return head.startswith(_TIFF)


def tiff_supported() -> bool:
    return find_spec("tifffile") is not None


def open_array(stream: IO[bytes]) -> ArrayFile:
    """An array file [H, W], [H, W, C] or [C, H, W]: of the first and the last axis, the shorter one are channels.

    Raises:
        ValueError: it is not an image.
    """
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"its format version {version} is not supported; save it with numpy.save")
    shape, _, dtype = _HEADERS[version](stream)
    if dtype.kind not in "biuf" or len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"it is an array of {dtype} {list(shape)}; expected numbers [H, W], [H, W, C] or [C, H, W]")
    start = stream.tell()
    available = stream.seek(0, 2) - start
    if prod(shape) * dtype.itemsize > available:
        raise ValueError("it is truncated")
    axes = "HW" if len(shape) == 2 else "CHW" if shape[0] < shape[2] else "HWC"

    def load() -> np.ndarray:
        stream.seek(0)
        return np.load(stream, allow_pickle=False)  # type: ignore[no-any-return]  # numpy's annotation

    return _file(load, axes, shape, 1)


def open_tiff(stream: IO[bytes]) -> ArrayFile:
    """The first image of a TIFF file, whose bands may be samples of pixels, planes or pages.

    Raises:
        DataError: tifffile is not installed.
        ValueError: it is not an image of one or several bands.
    """
    if not tiff_supported():
        raise DataError(INSTALL)
    import tifffile

    logging.getLogger("tifffile").disabled = True  # it logs the reasons of its own exceptions
    series: Any = tifffile.TiffFile(stream, name="image").series[0]
    axes = "".join(name for name, length in zip(series.axes, series.shape, strict=True) if name in "YX" or length > 1)
    shape = [length for name, length in zip(series.axes, series.shape, strict=True) if name in "YX" or length > 1]
    if sorted(axes)[-2:] != ["X", "Y"] or len(axes) > 3 or series.dtype is None or series.dtype.kind not in "biuf":
        raise ValueError(f"it has the axes {series.axes} {list(series.shape)}; expected height, width and bands")
    tag = series.keyframe.tags.get(_ORIENTATION)
    names = "".join({"Y": "H", "X": "W"}.get(name, "C") for name in axes)

    def load() -> np.ndarray:
        return series.asarray().reshape(shape)  # type: ignore[no-any-return]  # tifffile's annotation

    return _file(load, names, shape, int(tag.value) if tag is not None and tag.value in range(1, 9) else 1)


def _file(load: Callable[[], np.ndarray], axes: str, shape: Any, orientation: int) -> ArrayFile:
    lengths = dict(zip(axes, shape, strict=True))
    channels = lengths.get("C", 1)
    if channels > LARGEST_CHANNELS:
        raise ValueError(f"it has {channels} channels; expected at most {LARGEST_CHANNELS}")

    def read() -> np.ndarray:
        values = load()
        values = values[..., None] if "C" not in axes else values.transpose([axes.index(name) for name in "HWC"])
        native = values.dtype.newbyteorder("=")
        return np.ascontiguousarray(values, native)

    return ArrayFile((lengths["W"], lengths["H"]), channels, orientation, read)


def check_tiff_support(path: str) -> None:
    """UserError if this is a TIFF file, of which an exact number of bands is needed, and tifffile is missing."""
    if path.lower().endswith(TIFF_SUFFIXES) and not tiff_supported():
        raise UserError(f"{path}: {INSTALL}")
