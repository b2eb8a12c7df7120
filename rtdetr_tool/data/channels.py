"""Read images with an exact number of channels: grayscale, transparency, multispectral bands.

Images of models without RGB input are never converted to another number of channels, because nothing says what an
additional channel would mean. Only a gray image may become RGB.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from rtdetr_tool.data.array_files import ArrayFile
from rtdetr_tool.data.pixels import PixelFormat, rgb_pixels
from rtdetr_tool.errors import DataError

_GRAY_MODES = ("1", "L", "F")  # and all that start with I, which have 16 or 32 bits
_SAMPLES = 277  # TIFF tag


class ChannelMismatch(DataError):
    """An image has another number of channels than the model."""


def exact_pixels(file: Image.Image | ArrayFile, pixels: PixelFormat, name: str) -> np.ndarray:
    """Pixels of an opened image as uint8 [H, W, C] in this format; `name` is used in errors.

    Raises:
        ChannelMismatch: it has another number of channels.
        DataError: its values are outside of the range of their type.
    """
    values = _array(file, pixels, name) if isinstance(file, ArrayFile) else _bands(file, pixels, name)
    levels = to_levels(values, pixels, name)
    return levels if levels.shape[2] == pixels.channels else np.repeat(levels, pixels.channels, axis=2)


def mismatch(name: str, found: str, channels: int, expected: int) -> ChannelMismatch:
    return ChannelMismatch(
        f"{name} has {found}, but model.num_channels is {expected}. Set model.num_channels={channels}, or convert the "
        "images."
    )


def _array(file: ArrayFile, pixels: PixelFormat, name: str) -> np.ndarray:
    if file.channels not in _accepted(pixels):
        raise mismatch(f"Image {name}", _counted(file.channels), file.channels, pixels.channels)
    return file.read()


def _accepted(pixels: PixelFormat) -> tuple[int, ...]:
    return (1, 3) if pixels.channels == 3 else (pixels.channels,)


def _counted(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"


def _bands(file: Image.Image, pixels: PixelFormat, name: str) -> np.ndarray:
    """The stored values [H, W, C] of an image that Pillow has loaded."""
    if file.mode in _GRAY_MODES or file.mode.startswith("I"):
        values = np.asarray(file)
        found = values.astype(np.uint8) * np.uint8(255) if file.mode == "1" else values
        channels = getattr(file, "tag_v2", {}).get(_SAMPLES, 1)  # of which Pillow only reads the first
    elif pixels.channels == 3:
        return rgb_pixels(file)
    else:
        mode = _exact_mode(file)
        channels = Image.getmodebands(mode)
        found = np.asarray(file if file.mode == mode else file.convert(mode))
    if channels not in _accepted(pixels):
        raise mismatch(f"Image {name}", f"{_counted(channels)} ({file.mode})", channels, pixels.channels)
    return np.array(found).reshape(file.height, file.width, channels)  # copied, because torch needs writable memory


def _exact_mode(file: Image.Image) -> str:
    """The mode with plain channels that has all information of a color image, or of gray with transparency."""
    if file.mode in ("LA", "La"):
        return "LA"
    if file.mode in ("RGBA", "RGBa", "PA") or (file.mode == "P" and "transparency" in file.info):
        return "RGBA"
    return "RGB"


# Values


def default_range(dtype: np.dtype) -> tuple[float, float] | None:
    """The values of a type that become 0 and 255; None if they are not known."""
    if dtype == np.bool_:
        return 0.0, 1.0
    if dtype == np.uint8:
        return 0.0, 255.0
    if dtype == np.uint16 or dtype == np.int32:  # Pillow's type of 16-bit files in some formats
        return 0.0, 65535.0
    return (0.0, 1.0) if dtype.kind == "f" else None


def to_levels(values: np.ndarray, pixels: PixelFormat, name: str) -> np.ndarray:
    """Stored values [H, W, C] as uint8 0..255; values that are not finite become 0.

    Raises:
        DataError: without `value_range`, values are outside of the range of their type, or it has none.
    """
    if pixels.value_range is None:
        if values.dtype == np.uint8:
            return values
        span = default_range(values.dtype)
        low, high = _extremes(values)
        if span is None or low < span[0] or high > span[1]:
            expected = "" if span is None else f"; expected {span[0]:g} to {span[1]:g}"
            raise DataError(
                f"Image {name} has {values.dtype} values from {low:g} to {high:g}{expected}. Set dataset.value_range "
                "to the values that are black and white."
            )
        bounds: Sequence[float] = span
    else:
        bounds = pixels.value_range
    lows, highs = np.array(bounds[::2], np.float64), np.array(bounds[1::2], np.float64)
    if values.dtype in (np.uint8, np.uint16):
        return _by_table(values, lows, highs)
    scaled = (values.astype(np.float64) - lows) * (255 / (highs - lows))
    levels: np.ndarray = np.rint(np.nan_to_num(scaled, nan=0.0, posinf=0.0, neginf=0.0).clip(0, 255)).astype(np.uint8)
    return levels


def _by_table(values: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
    """The same for 8 and 16 bits, by looking up each value."""
    stored = np.arange(np.iinfo(values.dtype).max + 1, dtype=np.float64)[:, None]
    tables = np.rint(((stored - lows) * (255 / (highs - lows))).clip(0, 255)).astype(np.uint8)  # [values, 1 or C]
    if tables.shape[1] == 1:
        single: np.ndarray = tables[values, 0]
        return single
    result = np.empty(values.shape, np.uint8)
    for channel in range(values.shape[2]):
        result[..., channel] = tables[values[..., channel], channel]
    return result


def _extremes(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
