"""Calibration images: a folder, an array file, an array, or the images of the spec's data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rtdetr_tool.data.faults import retried
from rtdetr_tool.data.pixels import RGB, PixelFormat
from rtdetr_tool.errors import UserError
from rtdetr_tool.files import open_regular
from rtdetr_tool.formats.images import UNSCORED_FIRST, ImageSource, image_source_of
from rtdetr_tool.spec import DatasetSpec


@dataclass(frozen=True)
class ArrayImages:
    """Images [N, C, H, W], uint8 0..255 or float 0..1, already at the network's size."""

    images: np.ndarray
    origin: str

    @property
    def available(self) -> int:
        return len(self.images)

    def batches(self, count: int, batch: int) -> Iterator[Tensor]:
        """Float images [batch, C, H, W] 0..1 of the first `count`; the last batch may be smaller."""
        for start in range(0, min(count, len(self.images)), batch):
            part = torch.from_numpy(np.array(self.images[start : min(start + batch, count)]))
            yield part.float() / 255 if part.dtype == torch.uint8 else part.float()


def calibration_images_from(
    given: str | Path | np.ndarray | None,
    dataset: DatasetSpec,
    size: tuple[int, int],
    name: str,
    pixels: PixelFormat = RGB,
) -> ArrayImages | ImageSource:
    """The images that INT8 ranges are measured on.

    Args:
        size: (height, width) of the network's input.
        name: the field for messages, `export.tflite.calibration`.

    Raises:
        UserError: there are none, or an array does not contain images of this size.
    """
    shape = (pixels.channels, *size)
    if isinstance(given, np.ndarray):
        return checked(given, shape, f"the array for {name}")
    if given is not None and Path(given).suffix.lower() == ".npy":
        return checked(read_array(Path(given), name), shape, f"{name}: {given}")
    if given is not None and not Path(given).is_dir():
        raise UserError(f"{name}: {given} is neither a folder of images nor an array file (.npy)")
    augmentation = dataset.augmentation
    source = image_source_of(
        dataset,
        [str(given)] if given else None,
        augmentation.eval_spatial_size,
        augmentation.preserve_aspect_ratio,
        UNSCORED_FIRST,
        pixels,
    )
    if source is None:
        raise UserError(
            f"{name}: INT8 requires calibration images; set a folder of images, or an array file (.npy) of images "
            f"[N, {pixels.channels}, {size[0]}, {size[1]}]"
        )
    return source


def read_array(path: Path, name: str) -> np.ndarray:
    """An array file, memory-mapped; object arrays are refused, because loading them runs code."""

    def read() -> np.ndarray:
        with open_regular(path):
            array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
            return array

    try:
        return retried(read, path)
    except FileNotFoundError:
        raise UserError(f"{name}: {path} does not exist") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{name}: {path} is not an array file of numbers (.npy): {error}") from None


def checked(images: np.ndarray, shape: tuple[int, int, int], what: str) -> ArrayImages:
    """UserError if an array does not contain preprocessed images of this shape (channels, height, width)."""
    channels, height, width = shape
    order = "RGB, " if channels == 3 else ""
    layout = (
        f"[N, {channels}, {height}, {width}] or [N, {height}, {width}, {channels}], {order}uint8 0..255 or float 0..1"
    )
    if images.ndim == 4 and images.shape[1:] == (height, width, channels):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1:] != shape or len(images) == 0:
        raise UserError(f"{what} has the shape {list(images.shape)}; expected images {layout}")
    if images.dtype == np.uint8:
        return ArrayImages(images, what)
    if images.dtype.kind != "f":
        raise UserError(f"{what} has the type {images.dtype}; expected images {layout}")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"{what} has values from {low:.3g} to {high:.3g}; expected images {layout} (normalization is "
            "applied if the layout requires it)"
        )
    return ArrayImages(images, what)
