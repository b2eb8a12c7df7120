"""A grid of augmented training samples with their boxes, masks and keypoints."""

from __future__ import annotations

import io
import logging
import math
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from rtdetr_tool.data.dataset import DetectionDataset, TrainDataset
from rtdetr_tool.errors import DataError
from rtdetr_tool.files import write_atomically
from rtdetr_tool.ops.boxes import cxcywh_to_xyxy
from rtdetr_tool.ops.pixels import as_rgb
from rtdetr_tool.ops.structures import Target
from rtdetr_tool.visualize import draw_boxes, draw_keypoints, palette_color, skeletons_of

logger = logging.getLogger(__name__)

SIDE = 480  # pixels; larger samples are reduced
_GAP = 4
_MASK_OPACITY = 0.4
_BACKGROUND = (96, 96, 96)  # not black, which is what augmentation adds around images


def write_preview(dataset: DetectionDataset | None, count: int, folder: Path) -> None:
    """Write `augmented.jpg`: what training would see. Nothing without a training dataset or with a count of 0."""
    grid = augmentation_grid(dataset, count) if isinstance(dataset, TrainDataset) and count else None
    if grid is not None:
        write_atomically(folder / "augmented.jpg", grid)
        logger.info("Wrote %s: augmented training images with their labels", folder / "augmented.jpg")


def augmentation_grid(dataset: TrainDataset, count: int) -> bytes | None:
    """The first `count` samples as a JPEG, in the first epoch with all steps; None if an image cannot be read."""
    epoch = dataset.stages.start
    try:
        samples = [dataset.sample((epoch, index)) for index in range(min(count, len(dataset)))]
    except DataError as error:
        logger.warning("Skipping the preview of augmented images: %s", error)
        return None
    tiles = [_tile(image, target, dataset) for image, target in samples]
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    width, height = (side + _GAP for side in tiles[0].size)
    grid = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), _BACKGROUND)
    for number, tile in enumerate(tiles):
        grid.paste(tile, (number % columns * width + _GAP, number // columns * height + _GAP))
    content = io.BytesIO()
    grid.save(content, "JPEG", quality=90)
    return content.getvalue()


def _tile(image: Tensor, target: Target, dataset: TrainDataset) -> Image.Image:
    """A sample with its objects, at most `SIDE` pixels wide and high."""
    pixels = as_rgb(image).permute(1, 2, 0).numpy().copy()
    labels = target.labels.tolist()
    colors = [palette_color(label) for label in labels]
    if target.masks is not None:
        for mask, color in zip(target.masks.numpy(), colors, strict=True):
            pixels[mask] = np.rint(pixels[mask] * (1 - _MASK_OPACITY) + np.array(color) * _MASK_OPACITY)
    height, width = pixels.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = (round(width * scale), round(height * scale))
    boxes = cxcywh_to_xyxy(target.boxes).numpy() * (size * 2)
    captions = [dataset.class_map.name_of(label) for label in labels]
    drawn = draw_boxes(Image.fromarray(pixels).resize(size), boxes.tolist(), colors, captions, outline_width=2)
    if target.keypoints is not None:
        lines = [skeletons_of(dataset.class_map).get(label, ()) for label in labels]
        points = target.keypoints.numpy()
        draw_keypoints(drawn, points[..., :2] * size, points[..., 2] > 0, lines, colors, outline_width=2)
    return drawn
