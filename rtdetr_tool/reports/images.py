"""Small images for reports: an image with its labels, and labels next to detections."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rtdetr_tool.data.decoding import SizeMismatch, decode_image
from rtdetr_tool.data.pixels import RGB, PixelFormat
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.errors import DataError
from rtdetr_tool.metrics.image_matches import ImageDetections
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.pixels import as_rgb
from rtdetr_tool.visualize import Color, Skeleton, draw_boxes, draw_keypoints, palette_color, skeletons_of

SIDE = 420  # pixels of the longer side
_GAP = 6
_DRAWN = 0.5  # least probability of detected keypoints; labeled ones have a visibility of 1 or 2


@dataclass(frozen=True)
class Shown:
    """Objects to draw: boxes (xyxy pixels), colors and captions, and keypoints [P, 3] with skeletons if there are any.

    Only the first boxes may have keypoints.
    """

    boxes: Sequence[Sequence[float]]
    colors: Sequence[Color]
    names: Sequence[str]
    points: Sequence[NDArray[np.float64]] = ()
    skeletons: Sequence[Skeleton] = ()


def labeled_image(
    record: ImageRecord,
    class_map: ClassMap | None,
    extra: Sequence[tuple[Sequence[float], Color, str]] = (),
    pixels: PixelFormat = RGB,
) -> bytes | None:
    """The image as training reads it with its labels and `extra` boxes (xyxy pixels, color, caption), as JPEG.

    None if it cannot be read.
    """
    try:
        image, scale = _decoded(record, pixels)
    except DataError:
        return None
    labels = labels_of(record, class_map)
    boxes, colors, names = (list(column) for column in zip(*extra, strict=True)) if extra else ([], [], [])
    more = Shown(
        [*labels.boxes, *boxes], [*labels.colors, *colors], [*labels.names, *names], labels.points, labels.skeletons
    )
    return _jpeg(_drawn(image, scale, more))


def comparison_image(
    record: ImageRecord,
    class_map: ClassMap,
    detections: ImageDetections,
    index_of: Mapping[int, int],
    pixels: PixelFormat = RGB,
) -> bytes | None:
    """Labels on the left, detections on the right, as JPEG; None if the image cannot be read.

    Args:
        index_of: class index by category id, for names and colors.
    """
    try:
        image, scale = _decoded(record, pixels)
    except DataError:
        return None
    order = np.argsort(detections.rows[:, 4], kind="stable")
    ordered = detections.rows[order]
    boxes = np.concatenate([ordered[:, :2], ordered[:, :2] + ordered[:, 2:4]], axis=1).tolist()
    classes = [index_of.get(int(category), 0) for category in ordered[:, 5]]
    captions = [f"{class_map.name_of(index)} {score:.2f}" for index, score in zip(classes, ordered[:, 4], strict=True)]
    shapes = detections.shapes or [{}] * len(order)
    points = [np.reshape(shapes[index].get("keypoints", []), (-1, 3)) for index in order]
    skeletons = skeletons_of(class_map)
    shown = Shown(
        boxes, [palette_color(index) for index in classes], captions, points, [skeletons.get(i, ()) for i in classes]
    )
    left, right = _drawn(image, scale, labels_of(record, class_map)), _drawn(image, scale, shown)
    both = Image.new("RGB", (left.width * 2 + _GAP, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + _GAP, 0))
    return _jpeg(both)


def labels_of(record: ImageRecord, class_map: ClassMap | None) -> Shown:
    """Boxes, captions and keypoints of an image's labels."""
    labels = record.labels.tolist()
    names = [class_map.name_of(label) if class_map else str(label) for label in labels]
    names = [f"{name} (crowd)" if crowd else name for name, crowd in zip(names, record.iscrowd.tolist(), strict=True)]
    skeletons = {} if class_map is None else skeletons_of(class_map)
    points = [] if record.keypoints is None else list(record.keypoints)
    lines = [skeletons.get(label, ()) for label in labels]
    return Shown(record.boxes.tolist(), [palette_color(label) for label in labels], names, points, lines)


def _decoded(record: ImageRecord, pixels: PixelFormat) -> tuple[Image.Image, tuple[float, float]]:
    """The image, resized so that its longer side is `SIDE`, and the scale (x, y) of its boxes."""
    try:
        decoded = decode_image(record.path, (record.width, record.height) if record.width else None, pixels)
    except SizeMismatch:
        decoded = decode_image(record.path, pixels=pixels)
    image = Image.fromarray(as_rgb(decoded).permute(1, 2, 0).numpy())
    width, height = image.size
    factor = SIDE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS), (size[0] / width, size[1] / height)


def _drawn(image: Image.Image, scale: tuple[float, float], shown: Shown) -> Image.Image:
    small = [[value * by for value, by in zip(box, scale * 2, strict=True)] for box in shown.boxes]
    drawn = draw_boxes(image, small, shown.colors, shown.names, 2)
    for points, skeleton, color in zip(shown.points, shown.skeletons, shown.colors, strict=False):
        draw_keypoints(drawn, points[None, :, :2] * scale, points[None, :, 2] >= _DRAWN, [skeleton], [color], 2)
    return drawn


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
