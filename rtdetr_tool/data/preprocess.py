"""Resize decoded images to the network's input, for evaluation, inference and all runtimes.

Images are uint8 [C, H, W], mostly RGB, until they are on the device, where `to_float` converts them to 0..1. There is
no normalization by mean and standard deviation, as in TAO.
"""

from __future__ import annotations

import os
import platform
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rtdetr_tool.data.decoding import decode_image
from rtdetr_tool.data.pixels import RGB, PixelFormat


@dataclass
class PreparedImage:
    """An image at the network's size, and what is needed to undo the resizing (see `ops.structures.Target`)."""

    image: Tensor  # [C, H, W] uint8
    original_size: tuple[int, int]  # (height, width)
    box_scale: tuple[float, float]  # (x, y)


# Resizing


def input_size(spatial_size: Sequence[int], preserve_aspect_ratio: bool) -> tuple[int, int]:
    """(height, width) of the network's input: `spatial_size`, or a square with its longer side."""
    height, width = spatial_size
    longer = max(height, width)
    return (longer, longer) if preserve_aspect_ratio else (height, width)


def prepare_image(image: Tensor, spatial_size: Sequence[int], preserve_aspect_ratio: bool = False) -> PreparedImage:
    """Resize a decoded image, uint8 [C, H, W], to the network's input.

    Without `preserve_aspect_ratio` it is stretched to `spatial_size` (height, width). With it, the longer side becomes
    the longer of the two, and the image is padded with black on the right or bottom to a square.
    """
    height, width = image.shape[-2:]
    target = input_size(spatial_size, preserve_aspect_ratio)
    if not preserve_aspect_ratio:
        return PreparedImage(resize(image, target), (height, width), (float(width), float(height)))
    inner = letterbox_size((height, width), target[0])
    resized = F.pad(resize(image, inner), [0, target[1] - inner[1], 0, target[0] - inner[0]])
    return PreparedImage(resized, (height, width), (target[1] * width / inner[1], target[0] * height / inner[0]))


def load_image(
    path: str | os.PathLike[str],
    spatial_size: Sequence[int],
    preserve_aspect_ratio: bool = False,
    pixels: PixelFormat = RGB,
) -> PreparedImage:
    """Decode and prepare one file."""
    return prepare_image(decode_image(path, pixels=pixels), spatial_size, preserve_aspect_ratio)


def letterbox_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) of an image scaled so that its longer side is `side`; at least one pixel each."""
    longest = max(size)
    height, width = (max(1, round(length * side / longest)) for length in size)
    return height, width


def resize(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a uint8 image to (height, width): bilinear, antialiased; keeps the memory format.

    Equals `resize` of torchvision, which takes a second to import.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)  # with the strides of a batch in either memory format
    if image.device.type == "cpu" and _has_uint8_kernel():
        return F.interpolate(batch, list(size), mode="bilinear", antialias=True)[0]
    return F.interpolate(batch.float(), list(size), mode="bilinear", antialias=True)[0].round_().to(torch.uint8)


def _has_uint8_kernel() -> bool:
    """Whether PyTorch resizes uint8 images with vector instructions; without them, float32 is faster."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in ("aarch64", "arm64")


# On the device


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 0..1, on any device and in any memory format."""
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images.to(torch.float32)


def draw_scale(scales: Sequence[int | Sequence[int]], seed: int, step: int) -> tuple[int, int]:
    """The (height, width) of multi-scale training in this step, a function of seed and step only.

    Therefore all ranks agree. An entry of `scales` is the side of a square or a (height, width) pair.
    """
    entry = random.Random(f"multi-scale {seed} {step}").choice(list(scales))
    height, width = (entry, entry) if isinstance(entry, int) else entry
    return int(height), int(width)


def resize_batch(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a float batch [B, C, H, W] to (height, width), bilinear. Boxes are relative and do not change."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
