"""Images for comparison and calibration, preprocessed exactly as for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rtdetr_tool.data.build_sources import source_images
from rtdetr_tool.data.channels import ChannelMismatch
from rtdetr_tool.data.folder import find_images
from rtdetr_tool.data.pixels import RGB, PixelFormat
from rtdetr_tool.data.preprocess import load_image, to_float
from rtdetr_tool.errors import DataError
from rtdetr_tool.spec import DatasetSpec

logger = logging.getLogger(__name__)

UNSCORED_FIRST = ("train", "infer", "test", "val")  # images that are scored should not be used for calibration


@dataclass(frozen=True)
class ImageSource:
    """Image files and the size to which they are resized; `load` returns one batch, `batches` yields many."""

    paths: tuple[str, ...]
    origin: str
    spatial_size: tuple[int, int]
    preserve_aspect_ratio: bool = False
    pixels: PixelFormat = RGB

    @property
    def available(self) -> int:
        """Number of files, some of which may be unreadable."""
        return len(self.paths)

    def batches(self, count: int, batch: int) -> Iterator[Tensor]:
        """Float images [batch, C, H, W] 0..1 of the first `count` readable files; the last batch may be smaller."""
        part: list[Tensor] = []
        for image in self._readable(count):
            part.append(image)
            if len(part) == batch:
                yield to_float(torch.stack(part))
                part = []
        if part:
            yield to_float(torch.stack(part))

    def load(self, count: int) -> Tensor:
        """The first `count` readable images as one float batch [N, C, H, W]."""
        return next(self.batches(count, count))

    def _readable(self, count: int) -> Iterator[Tensor]:
        given, failures = 0, []
        for path in self.paths:
            if given == count:
                return
            try:
                image = load_image(path, self.spatial_size, self.preserve_aspect_ratio, self.pixels).image
            except ChannelMismatch:
                raise
            except DataError as error:
                failures.append(str(error))
                logger.warning("%s", error)
                continue
            given += 1
            yield image
        if given == 0:
            raise DataError(f"None of the {len(self.paths)} images in {self.origin} can be read: {failures[0]}")


def image_source_of(
    dataset: DatasetSpec,
    folders: Sequence[str] | None,
    spatial_size: Sequence[int],
    preserve_aspect_ratio: bool,
    order: Sequence[str] = ("val", "test", "train", "infer"),
    pixels: PixelFormat = RGB,
) -> ImageSource | None:
    """Images in `folders`, or else in the first data source, in this order, with existing images.

    None if there are no images. The files are shuffled with a fixed seed, so that a few represent all.
    """
    arrays = not pixels.is_rgb
    named: list[tuple[str, Callable[[], Sequence[str]]]] = []
    if folders:
        named.append(("the given folders", partial(find_images, folders, arrays)))
    named += [(f"dataset.{name}_data_sources", partial(source_images, dataset, name, arrays)) for name in order]
    for origin, find in named:
        try:
            paths = find()
        except DataError:
            if folders:
                raise
            continue
        shuffled = np.random.default_rng(0).permutation(len(paths))
        size = (int(spatial_size[0]), int(spatial_size[1]))
        return ImageSource(tuple(paths[index] for index in shuffled), origin, size, preserve_aspect_ratio, pixels)
    return None


def synthetic_images(count: int, size: tuple[int, int], channels: int = 3) -> Tensor:
    """Float images [count, C, H, W] 0..1 of soft blobs and rectangles, used if there are no real images."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    coarse = torch.rand(count, channels, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
    for image in images:
        for _ in range(12):
            top, left, tall, wide = torch.rand(4, generator=generator).tolist()
            y, x = int(top * height * 0.8), int(left * width * 0.8)
            color = torch.rand(channels, 1, 1, generator=generator)
            image[:, y : y + max(4, int(tall * height * 0.4)), x : x + max(4, int(wide * width * 0.4))] = color
    return images
