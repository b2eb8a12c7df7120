"""Small images for reports: an image with its labels, and labels next to detections."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rtdetr_tool.data.decoding import SizeMismatch, decode_image
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.errors import DataError
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.visualize import Color, draw_boxes, palette_color

SIDE = 420  # pixels of the longer side
_GAP = 6
_Boxes = Sequence[Sequence[float]]


def labeled_image(
    record: ImageRecord, class_map: ClassMap | None, extra: Sequence[tuple[Sequence[float], Color, str]] = ()
) -> bytes | None:
    """The image as training reads it with its labels and `extra` boxes (xyxy pixels, color, caption), as JPEG.

    None if it cannot be read.
    """
    try:
        image, scale = _decoded(record)
    except DataError:
        return None
    boxes, colors, names = labels_of(record, class_map)
    return _jpeg(
        _drawn(
            image,
            scale,
            [*boxes, *(box for box, _, _ in extra)],
            [*colors, *(color for _, color, _ in extra)],
            [*names, *(name for _, _, name in extra)],
        )
    )


def comparison_image(
    record: ImageRecord, class_map: ClassMap, rows: NDArray[np.float64], index_of: Mapping[int, int]
) -> bytes | None:
    """Labels on the left, detections on the right, as JPEG; None if the image cannot be read.

    Args:
        rows: detections [K, 6] x, y, width, height (pixels), score, category id.
        index_of: class index by category id, for names and colors.
    """
    try:
        image, scale = _decoded(record)
    except DataError:
        return None
    ordered = rows[np.argsort(rows[:, 4], kind="stable")]
    boxes = np.concatenate([ordered[:, :2], ordered[:, :2] + ordered[:, 2:4]], axis=1).tolist()
    classes = [index_of.get(int(category), 0) for category in ordered[:, 5]]
    captions = [f"{class_map.name_of(index)} {score:.2f}" for index, score in zip(classes, ordered[:, 4], strict=True)]
    left = _drawn(image, scale, *labels_of(record, class_map))
    right = _drawn(image, scale, boxes, [palette_color(index) for index in classes], captions)
    both = Image.new("RGB", (left.width * 2 + _GAP, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + _GAP, 0))
    return _jpeg(both)


def labels_of(record: ImageRecord, class_map: ClassMap | None) -> tuple[_Boxes, list[Color], list[str]]:
    """Boxes (xyxy pixels), colors and captions of an image's labels."""
    labels = record.labels.tolist()
    names = [class_map.name_of(label) if class_map else str(label) for label in labels]
    names = [f"{name} (crowd)" if crowd else name for name, crowd in zip(names, record.iscrowd.tolist(), strict=True)]
    return record.boxes.tolist(), [palette_color(label) for label in labels], names


def _decoded(record: ImageRecord) -> tuple[Image.Image, tuple[float, float]]:
    """The image, resized so that its longer side is `SIDE`, and the scale (x, y) of its boxes."""
    try:
        pixels = decode_image(record.path, (record.width, record.height) if record.width else None)
    except SizeMismatch:
        pixels = decode_image(record.path)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    width, height = image.size
    factor = SIDE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS), (size[0] / width, size[1] / height)


def _drawn(
    image: Image.Image,
    scale: tuple[float, float],
    boxes: _Boxes,
    colors: Sequence[Color],
    names: Sequence[str],
) -> Image.Image:
    small = [[value * by for value, by in zip(box, scale * 2, strict=True)] for box in boxes]
    return draw_boxes(image, small, colors, names, 2)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
