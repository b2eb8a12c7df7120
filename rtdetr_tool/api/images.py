"""Convert any accepted kind of image to the uint8 tensor that preprocessing starts from."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rtdetr_tool.checkpoints.download import is_url, public_url, read_url
from rtdetr_tool.data.channels import to_levels
from rtdetr_tool.data.decoding import decode_content, decode_image, decode_pil_image
from rtdetr_tool.data.pixels import RGB, PixelFormat
from rtdetr_tool.errors import DataError, NotAnImage

MAX_BYTES = 64_000_000  # of an image at a URL
MAX_SECONDS = 30.0


def _forms(channels: int) -> str:
    order = "RGB, " if channels == 3 else "[height, width], " if channels == 1 else ""
    return (
        f"a path, an http(s) address, a PIL image, an array [height, width, {channels}] or a tensor [{channels}, "
        f"height, width], {order}uint8 0..255 or floats 0..1"
    )


def to_pixels(image: Any, pixels: PixelFormat = RGB) -> Tensor:
    """An image in any of the accepted forms as uint8 [C, H, W] on the CPU, RGB by default.

    Floats 0..1 are rounded to the 256 levels that an image file has.

    Raises:
        DataError: the object is not an image, has another number of channels, or cannot be read.
    """
    channels = pixels.channels
    if isinstance(image, (str, os.PathLike)):
        return _read(os.fspath(image), pixels)
    if isinstance(image, Image.Image):
        return decode_pil_image(image, pixels)
    if isinstance(image, np.ndarray):
        array = image[..., None] if image.ndim == 2 and channels == 1 else image
        if array.ndim != 3 or array.shape[2] != channels:
            raise DataError(f"An array of shape {list(image.shape)} is not an image; expected {_forms(channels)}.")
        if pixels.value_range is not None or array.dtype == np.uint16:
            array = to_levels(array, pixels, "in memory")
        writable = np.require(array, requirements=("C", "W"))  # torch requires it; np.asarray(image) is read-only
        return _levels(torch.from_numpy(writable), channels).permute(2, 0, 1)
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != channels:
            raise DataError(f"A tensor of shape {list(image.shape)} is not an image; expected {_forms(channels)}.")
        return _levels(image.detach().cpu(), channels)
    raise NotAnImage(f"{type(image).__name__} is not an image; expected {_forms(channels)}.")


def _read(place: str, pixels: PixelFormat) -> Tensor:
    if not is_url(place):
        return decode_image(place, pixels=pixels)
    return decode_content(read_url(place, max_bytes=MAX_BYTES, seconds=MAX_SECONDS), public_url(place), pixels)


def _levels(pixels: Tensor, channels: int) -> Tensor:
    if pixels.numel() == 0:
        raise DataError(f"An image of shape {list(pixels.shape)} has no pixels.")
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point():
        raise NotAnImage(f"Pixels of type {pixels.dtype} are not supported; expected {_forms(channels)}.")
    low, high = pixels.min().item(), pixels.max().item()
    if not (low >= 0 and high <= 1):  # written so that NaN fails
        raise DataError(f"Pixels from {low:g} to {high:g} are invalid; expected floats 0..1 (pass 0..255 as uint8).")
    return pixels.mul(255).round().to(torch.uint8)
