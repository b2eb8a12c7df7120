"""The pixels that images are decoded to, and the conversion of every mode of Pillow to uint8 RGB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

_STRIP_PIXELS = 1 << 24  # converted at a time, so that large images are not copied as a whole


@dataclass(frozen=True)
class PixelFormat:
    """What images are decoded to: uint8 with this number of channels (`model.num_channels`).

    Args:
        value_range: stored values that become 0 and 255 (`dataset.value_range`): two numbers for all channels, or two
            for each one. None = those of the type (`channels.default_range`).
    """

    channels: int = 3
    value_range: tuple[float, ...] | None = None

    @property
    def is_rgb(self) -> bool:
        """Whether every image can be converted: to RGB with 8 bits."""
        return self.channels == 3 and self.value_range is None


RGB = PixelFormat()


def rgb_pixels(file: Image.Image) -> np.ndarray:
    """Pixels of a loaded image as uint8 [H, W, 3], converted in strips."""
    width, height = file.size
    convert = _to_rgb(file)
    rows = max(1, _STRIP_PIXELS // width)
    if rows >= height:
        return np.array(convert(file))  # copied, because torch needs writable memory
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = np.asarray(convert(file.crop((0, top, width, bottom))))
    return pixels


def _to_rgb(file: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """A function that converts this image, or any part of it, to RGB."""
    mode = file.mode
    if mode == "RGB":
        return lambda part: part
    if mode.startswith("I") or mode == "F":
        low, high = _gray_range(file)
        return lambda part: Image.fromarray(_to_8_bit(np.asarray(part), low, high)).convert("RGB")
    if mode == "P":
        return lambda part: part.convert("RGBA").convert("RGB")
    if mode in ("RGBa", "La"):  # premultiplied alpha
        return lambda part: part.convert("RGBA" if mode == "RGBa" else "LA").convert("RGB")
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")

        def from_lab(part: Image.Image) -> Image.Image:
            converted = ImageCms.profileToProfile(part, lab, srgb, outputMode="RGB")
            assert converted is not None  # None only if it works in place
            return converted

        return from_lab
    return lambda part: part.convert("RGB")


def _gray_range(file: Image.Image) -> tuple[float, float]:
    """The gray values with more than 8 bits that map to 0 and 255.

    Integers are treated as 16-bit, or scaled by their maximum if it is larger. Floats are treated as 0..1 if they are
    in that range, else as 0..255, else scaled by the range of their finite values.
    """
    values = np.asarray(file)
    if file.mode != "F":
        return 0.0, float(max(65535, int(values.max())))
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return (low, high) if low < 0 or high > 255 else (0.0, 1.0 if high <= 1 else 255.0)


def _to_8_bit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map gray values from `low`..`high` to 0..255; non-finite values become black."""
    values = np.nan_to_num(values.astype(np.float64), nan=low, posinf=low, neginf=low).clip(low, high)
    scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    return np.rint(scaled).astype(np.uint8)
