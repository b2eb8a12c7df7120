"""Photometric distortion (SSD, arXiv:1512.02325), as torchvision v2 defines it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import functional as F

BRIGHTNESS = (0.875, 1.125)
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = (-0.05, 0.05)  # share of the colour circle


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
            image = F.adjust_hue(image, self.hue)
        if self.contrast is not None and not self.contrast_first:
            image = F.adjust_contrast(image, self.contrast)
        return image if self.channels is None else image[list(self.channels)]


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
