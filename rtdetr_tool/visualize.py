"""Draw detections on images."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from rtdetr_tool.errors import UserError
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.masks import pixels_of
from rtdetr_tool.ops.structures import Detections, InstanceMasks

Color = tuple[int, int, int]

_GOLDEN_RATIO = 0.61803398875
_MASK_OPACITY = 0.45
_FINDABLE = 0.5  # least probability of keypoints that are drawn

Skeleton = Sequence[tuple[int, int]]  # pairs of keypoints


def palette_color(index: int) -> Color:
    """A fixed color for a class index; adjacent indices differ clearly, and the first 91 are all distinct."""
    hue = (0.02 + index * _GOLDEN_RATIO) % 1.0
    saturation = (0.85, 0.6)[index // 3 % 2]
    value = (1.0, 0.75, 0.9)[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def parse_color_map(color_map: Mapping[str, str] | None) -> dict[str, Color]:
    """Class name -> RGB; raises one `UserError` for all invalid colors."""
    colors, problems = {}, []
    for name, text in (color_map or {}).items():
        try:
            colors[name] = ImageColor.getrgb(str(text))[:3]
        except ValueError:
            value = "null" if text is None else f"'{text}'"  # an unquoted #rrggbb is a comment in YAML
            problems.append(
                f"inference.color_map.{name}: {value} is invalid; expected a color name such as red, or '#rrggbb' in "
                "quotes"
            )
    if problems:
        raise UserError("\n".join(problems))
    return colors


def draw_detections(
    image: Image.Image,
    detections: Detections,
    name_of: Callable[[int], str],
    colors: Mapping[str, Color] | None = None,
    outline_width: int = 3,
    labels: bool = True,
    prefixes: Sequence[str] | None = None,
    skeletons: Mapping[int, Skeleton] | None = None,
) -> Image.Image:
    """A copy of `image` (RGB) with boxes, masks or keypoints if there are any, and with `labels` a caption such as
    `name 0.87`.

    `prefixes` has the beginning of each caption, such as `#3 `, `skeletons` the lines between keypoints by class index.

    Detections with low scores are drawn first, so that high scores stay on top. Captions are drawn after all boxes, so
    that no line crosses text.
    """
    boxes, scores, classes = detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist()
    order = sorted(range(len(boxes)), key=scores.__getitem__)
    names = [name_of(classes[index]) for index in order]
    paints = [(colors or {}).get(name, palette_color(classes[index])) for index, name in zip(order, names, strict=True)]
    starts = prefixes or [""] * len(order)
    captions = [f"{starts[index]}{name} {scores[index]:.2f}" for index, name in zip(order, names, strict=True)]
    if detections.masks is not None:
        image = _tinted(image.convert("RGB"), detections.masks.select(order), paints)
    drawn = draw_boxes(
        image,
        [boxes[index] for index in order],
        paints,
        captions if labels else [],
        outline_width,
    )
    if detections.keypoints is not None:
        points = detections.keypoints.points[order].numpy()
        lines = [(skeletons or {}).get(classes[index], ()) for index in order]
        draw_keypoints(drawn, points[..., :2], points[..., 2] >= _FINDABLE, lines, paints, outline_width)
    return drawn


def draw_keypoints(
    image: Image.Image,
    points: NDArray[np.floating[Any]],
    shown: NDArray[np.bool_],
    skeletons: Sequence[Skeleton],
    colors: Sequence[Color],
    outline_width: int = 3,
) -> None:
    """Draw the keypoints of each object on `image`, and the lines of its skeleton between two that are shown.

    Args:
        points: [N, P, 2] pixels; shown: [N, P].
    """
    draw = ImageDraw.Draw(image)
    radius = max(2, outline_width)
    for places, visible, lines, color in zip(points.tolist(), shown.tolist(), skeletons, colors, strict=True):
        for a, b in lines:
            if visible[a] and visible[b]:
                draw.line([*places[a], *places[b]], fill=color, width=outline_width)
        for (x, y), there in zip(places, visible, strict=True):
            if there:
                circle = (x - radius, y - radius, x + radius, y + radius)
                draw.ellipse(circle, fill=color, outline=text_color(color))


def skeletons_of(class_map: ClassMap) -> dict[int, Skeleton]:
    """The lines between keypoints by class index."""
    return {index: pose.skeleton for index, pose in class_map.poses.items()}


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    colors: Sequence[Color],
    captions: Sequence[str] = (),
    outline_width: int = 3,
) -> Image.Image:
    """A copy of `image` (RGB) with boxes (xyxy pixels), the last one on top, each below its caption if given."""
    canvas = image.copy() if image.mode == "RGB" else image.convert("RGB")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(font_size(canvas.size))
    assert isinstance(font, ImageFont.FreeTypeFont)  # always with a size; without one it may be a bitmap font
    clipped = [_clip(list(box), canvas.size) for box in boxes]
    for box, color in zip(clipped, colors, strict=True):
        shorter = 1 + int(min(box[2] - box[0], box[3] - box[1]))
        draw.rectangle(box, outline=color, width=min(outline_width, shorter))
    for box, text, color in zip(clipped, captions, colors, strict=bool(captions)):
        _draw_label(draw, box, " ".join(text.split()), color, font, canvas.size)
    return canvas


def _tinted(image: Image.Image, masks: InstanceMasks, paints: Sequence[Color]) -> Image.Image:
    """A copy with each mask blended in its color, in order."""
    pixels = np.array(image)
    arrays = (mask.numpy() for chunk in pixels_of(masks) for mask in chunk)
    for mask, paint in zip(arrays, paints, strict=True):
        pixels[mask] = np.rint(pixels[mask] * (1 - _MASK_OPACITY) + np.array(paint) * _MASK_OPACITY)
    return Image.fromarray(pixels)


def font_size(size: tuple[int, int]) -> int:
    """Font size of captions in pixels: 1/40 of the image's shorter side, readable at any resolution."""
    return max(10, min(64, round(min(size) / 40)))


def _clip(box: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    left, right = sorted(min(max(x, 0.0), size[0] - 1.0) for x in (box[0], box[2]))
    top, bottom = sorted(min(max(y, 0.0), size[1] - 1.0) for y in (box[1], box[3]))
    return left, top, right, bottom


def _draw_label(
    draw: ImageDraw.ImageDraw,
    box: tuple[float, float, float, float],
    text: str,
    color: Color,
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> None:
    """Draw a caption on a filled strip above the box, or at its upper edge, moved left if it would leave the image."""
    ascent, descent = font.getmetrics()
    width, height = round(draw.textlength(text, font)) + 4, ascent + descent + 2
    x = max(0, min(int(box[0]), size[0] - width))
    y = int(box[1]) - height if box[1] >= height else max(0, min(int(box[1]), size[1] - height))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
    draw.text((x + 2, y + 1), text, fill=text_color(color), font=font)


def text_color(background: Color) -> Color:
    """Black or white, whichever has the higher contrast (WCAG 2 luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in background)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)
