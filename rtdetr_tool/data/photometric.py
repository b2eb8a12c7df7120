"""Photometric distortion (SSD, arXiv:1512.02325), as torchvision v2 defines it;
hue by a faster way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

BRIGHTNESS = (0.875, 1.125)
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = (-0.05, 0.05)  # share of the colour circle

_ROWS = 64  # rows at a time, so that the intermediate planes stay in the processor's cache


@dataclass(frozen=True)
class Distortion:
    """What to do to an image; None leaves a part out."""

    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None
    contrast_first: bool = True
    channels: tuple[int, int, int] | None = None

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 RGB [3, H, W] to the same."""
        if self.brightness is not None:
            image = F.adjust_brightness(image, self.brightness)
        if self.contrast is not None and self.contrast_first:
            image = F.adjust_contrast(image, self.contrast)
        if self.saturation is not None:
            image = F.adjust_saturation(image, self.saturation)
        if self.hue is not None:
            image = adjust_hue(image, self.hue)
        if self.contrast is not None and not self.contrast_first:
            image = F.adjust_contrast(image, self.contrast)
        return image if self.channels is None else image[list(self.channels)]


def adjust_hue(image: Tensor, shift: float) -> Tensor:
    """Turn the hue of a uint8 RGB image [3, H, W] by a share of the colour circle, at most 1/16 either way.

    torchvision goes to HSV and back in float. As long as value and saturation stay, the three channels are piecewise
    linear in the hue, so with all quantities multiplied by the chroma no division is needed and 16-bit integers do:
    five times as fast, and equal to within one grey level. The result is channels-last in memory.
    """
    if abs(shift) > 1 / 16:
        raise ValueError(f"hue shift {shift} is outside of -1/16..1/16")
    pixels = image.permute(1, 2, 0).numpy()
    result = np.empty(pixels.shape, dtype=np.uint8)
    step = np.int16(round(shift * 6 * 256))  # sectors of 60 degrees, 8 binary digits
    for top in range(0, len(pixels), _ROWS):
        _turn_hue(pixels[top : top + _ROWS], step, result[top : top + _ROWS])
    return torch.from_numpy(result).permute(2, 0, 1)


def _turn_hue(pixels: np.ndarray, step: np.int16, result: np.ndarray) -> None:
    """`adjust_hue` on some rows; hue is counted in sectors from red and multiplied by the chroma everywhere."""
    red, green, blue = (pixels[..., channel].astype(np.int16) for channel in range(3))
    low, high = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    chroma = high - low
    twice = chroma + chroma
    from_green, from_blue = blue - red + twice, red - green + twice + twice
    hue = np.where(high == red, green - blue, np.where(high == green, from_green, from_blue))  # -1..5 sectors
    hue += (chroma * step + np.int16(128)) >> 8
    # Each channel is a trapezoid over the hue: 1 in two sectors, 0 in two, a slope between. The second terms are the
    # slopes beyond -1 and 5, where the shifted hue leaves the range.
    slopes = (
        np.minimum(np.abs(hue - twice - chroma) - chroma, hue + twice),  # red
        twice - np.abs(hue - twice),  # green
        np.minimum(np.abs(hue - chroma) - chroma, 3 * twice - hue),  # blue
    )
    for channel, slope in enumerate(slopes):
        result[..., channel] = np.minimum(np.maximum(slope, 0, out=slope), chroma, out=slope) + low


def draw_distortion(rng: np.random.Generator, probability: float) -> Distortion:
    """Each part with the same probability, independently of the others."""

    def maybe(low: float, high: float) -> float | None:
        drawn, value = rng.random(), rng.uniform(low, high)
        return float(value) if drawn < probability else None

    brightness, contrast, saturation, hue = maybe(*BRIGHTNESS), maybe(*CONTRAST), maybe(*SATURATION), maybe(*HUE)
    contrast_first = bool(rng.random() < 0.5)
    shuffled, order = rng.random() < probability, rng.permutation(3)
    channels = tuple(int(c) for c in order) if shuffled else None
    return Distortion(brightness, contrast, saturation, hue, contrast_first, channels)
