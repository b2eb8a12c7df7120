"""Photometric distortion (SSD, arXiv:1512.02325) as in torchvision v2, but faster.

Each operation agrees with torchvision's to within one gray level. Pixels are uint8 numpy arrays [H, W, C], as returned
by decoders. Saturation, hue and the order of channels are only distorted in RGB.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

BRIGHTNESS = (0.875, 1.125)
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = (-0.05, 0.05)  # fraction of the color circle

_ALL = slice(None)
_GRAY = np.array([0.2989, 0.587, 0.114])  # ITU-R 601 luma, as torchvision rounds it
_GRAY_OF_256 = tuple(np.uint16(round(weight * 256)) for weight in _GRAY)  # their sum is 256
_STRIP = 1 << 15  # pixels at a time, so that intermediate planes stay in the CPU cache


@dataclass(frozen=True)
class Distortion:
    """Parameters of a distortion; None skips an operation."""

    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None
    contrast_first: bool = True
    channels: tuple[int, int, int] | None = None

    def __call__(self, image: Tensor, rows: slice = _ALL, columns: slice = _ALL) -> Tensor:
        """Distort a uint8 image [C, H, W] and return a part of it; the input is not modified.

        Only contrast depends on the whole image, so the other pixels are not distorted unless its mean is needed.
        """
        if len(image) != 3:
            self = self.for_channels(len(image))
        if not self.operations:
            return image[:, rows, columns]
        pixels = image.permute(1, 2, 0).numpy()
        if self.contrast is None:
            pixels = pixels[rows, columns]
        if self.brightness is not None:
            pixels = adjust_brightness(pixels, self.brightness)
        if self.contrast is not None:
            gray = _GRAY if len(image) == 3 else np.full(len(image), 1 / len(image))
            if not self._contrast_before_colors:
                pixels, gray = self._adjust_colors(pixels), _GRAY[list(self.channels or (0, 1, 2))]
            pixels = adjust_contrast(pixels[rows, columns], self.contrast, mean_gray(pixels, gray))
        if self.contrast is None or self._contrast_before_colors:
            pixels = self._adjust_colors(pixels)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def for_channels(self, count: int) -> Distortion:
        """The operations that exist for images with this number of channels."""
        return self if count == 3 else replace(self, saturation=None, hue=None, channels=None)

    @property
    def operations(self) -> int:
        """The number of operations that are not skipped."""
        parts = (self.brightness, self.contrast, self.saturation, self.hue, self.channels)
        return sum(part is not None for part in parts)

    @property
    def _contrast_before_colors(self) -> bool:
        return self.contrast_first or (self.saturation is None and self.hue is None)

    def _adjust_colors(self, pixels: np.ndarray) -> np.ndarray:
        if self.saturation is None and self.hue is None and self.channels is None:
            return pixels
        return adjust_colors(pixels, self.saturation, self.hue, self.channels or (0, 1, 2))


def adjust_brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Multiply every value by `factor`."""
    return _by_table(pixels, np.arange(256, dtype=np.float32) * np.float32(factor))


def adjust_contrast(pixels: np.ndarray, factor: float, mean: float) -> np.ndarray:
    """Multiply the distance of every value from the image's mean gray by `factor`."""
    return _by_table(pixels, np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(mean * (1 - factor)))


def mean_gray(pixels: np.ndarray, weights: np.ndarray = _GRAY) -> float:
    """The mean of the gray values of all pixels, with the weights of the channels."""
    rows = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    sums = np.zeros(rows.shape[1], np.int64)
    for top in range(0, len(rows), 256):  # as many as fit into 16 bits
        sums += np.add.reduce(rows[top : top + 256], axis=0, dtype=np.uint16)
    return float(sums.reshape(-1, len(weights)).sum(axis=0) @ weights) / (pixels.size / len(weights))


def _by_table(pixels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Look up each value in a table of 256 entries; bytes.translate is faster than numpy indexing."""
    content = bytearray(np.ascontiguousarray(pixels).reshape(-1).data)
    replaced = content.translate(table.clip(0, 255).astype(np.uint8).tobytes())
    return np.frombuffer(replaced, dtype=np.uint8).reshape(pixels.shape)


def adjust_colors(
    pixels: np.ndarray, saturation: float | None, hue: float | None, channels: tuple[int, int, int] = (0, 1, 2)
) -> np.ndarray:
    """Saturation, then hue, then the order of the channels.

    Args:
        saturation: factor 0.5..1.5 of the distance of every pixel from its gray value.
        hue: shift by a fraction of the color circle, at most 1/16 in either direction.
    """
    if saturation is not None and not 0.5 <= saturation <= 1.5:
        raise ValueError(f"saturation factor {saturation} is invalid; expected a value in 0.5..1.5")
    if hue is not None and abs(hue) > 1 / 16:
        raise ValueError(f"hue shift {hue} is invalid; expected a value in -1/16..1/16")
    result = np.empty(pixels.shape, np.uint8)
    height = max(1, _STRIP // max(1, pixels.shape[1]))
    first = 1 if hue is not None and hue < 0 else 0
    for top in range(0, len(pixels), height):
        strip, output = pixels[top : top + height], result[top : top + height]
        four = np.empty((4, *strip.shape[:2]), np.int16)  # red, green, blue, and one again: before red or after blue
        planes = four[first : first + 3]
        for channel in range(3):
            planes[channel] = strip[..., channel]
        if saturation is not None:
            _saturate(planes, saturation)
        if hue is not None:
            four[3 - 3 * first] = four[3 * first]
            _shift_hue(planes, four[:3] if first else four[1:], abs(hue))
        for channel, source in enumerate(channels):
            output[..., channel] = planes[source]
    return result


def _saturate(planes: np.ndarray, factor: float) -> None:
    """In place, for int16 planes [3, h, w]; the factor is rounded to 8 binary digits, so that 16 bits suffice."""
    red, green, blue = planes.view(np.uint16)
    gray = red * _GRAY_OF_256[0]
    gray += green * _GRAY_OF_256[1]
    gray += blue * _GRAY_OF_256[2]
    gray >>= 8
    change = planes - gray.view(np.int16)
    change *= np.int16(round((factor - 1) * 256))
    change >>= 8
    planes += change
    if factor > 1:
        np.clip(planes, 0, 255, out=planes)


def _shift_hue(planes: np.ndarray, neighbors: np.ndarray, shift: float) -> None:
    """In place, for int16 planes [3, h, w]; `neighbors` are the planes that come next in the shift's direction.

    torchvision converts to HSV and back in float. With fixed value and saturation, the channels are piecewise linear in
    the hue: each one moves by the chroma times the shift in sectors of 60 degrees, towards the maximum while its
    neighbor is at the minimum and vice versa, and less where a sector begins or ends during the shift.
    """
    red, green, blue = planes
    low, high = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    amount = high - low
    amount *= np.int16(round(shift * 6 * 256))  # 8 binary digits
    amount += np.int16(128)
    amount >>= 8
    change = np.maximum(neighbors, low + amount)
    np.minimum(change, high - amount, out=change)
    change -= neighbors
    planes += change
    np.maximum(planes, low, out=planes)
    np.minimum(planes, high, out=planes)


def draw_distortion(rng: np.random.Generator, probability: float) -> Distortion:
    """Random parameters; each operation has the same probability, independent of the others."""

    def maybe(low: float, high: float) -> float | None:
        drawn, value = rng.random(), rng.uniform(low, high)
        return float(value) if drawn < probability else None

    brightness, contrast, saturation, hue = maybe(*BRIGHTNESS), maybe(*CONTRAST), maybe(*SATURATION), maybe(*HUE)
    contrast_first = bool(rng.random() < 0.5)
    shuffled, order = rng.random() < probability, rng.permutation(3)
    first, second, third = (int(c) for c in order)
    channels = (first, second, third) if shuffled else None
    return Distortion(brightness, contrast, saturation, hue, contrast_first, channels)
