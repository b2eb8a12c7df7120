"""Drawing detections on images."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping

from PIL import Image, ImageColor, ImageDraw, ImageFont

from rtdetr_tool.errors import UserError
from rtdetr_tool.ops.structures import Detections

Color = tuple[int, int, int]

_GOLDEN_RATIO = 0.61803398875


def palette_color(index: int) -> Color:
    """A stable colour for a class index; neighbouring indices are far apart in hue."""
    hue = (0.02 + index * _GOLDEN_RATIO) % 1.0
    value = (1.0, 0.8, 0.9)[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def parse_color_map(color_map: Mapping[str, str] | None) -> dict[str, Color]:
    """Class name -> RGB; `UserError` names every colour that is not one."""
    colors, problems = {}, []
    for name, text in (color_map or {}).items():
        try:
            colors[name] = ImageColor.getrgb(str(text))[:3]
        except ValueError:
            problems.append(f"inference.color_map.{name}: '{text}' is not a colour; use a name like red or #rrggbb")
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
) -> Image.Image:
    """A copy of `image` (RGB) with boxes and, unless `labels` is off, `name 0.87` above each box, inside the frame.

    Weak detections are drawn first, so that strong ones stay readable on top.
    """
    canvas = image.convert("RGB").copy()
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(10, min(28, round(min(canvas.size) / 32))))
    boxes, scores, classes = detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist()
    for index in sorted(range(len(boxes)), key=scores.__getitem__):
        name = name_of(classes[index])
        color = (colors or {}).get(name) or palette_color(classes[index])
        box = _clip(boxes[index], canvas.size)
        draw.rectangle(box, outline=color, width=min(outline_width, max(1, int(min(box[2] - box[0], box[3] - box[1])) + 1)))
        if labels:
            _draw_label(draw, box, f"{name} {scores[index]:.2f}", color, font, canvas.size)
    return canvas


def _clip(box: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    left, right = sorted(min(max(x, 0.0), size[0] - 1.0) for x in (box[0], box[2]))
    top, bottom = sorted(min(max(y, 0.0), size[1] - 1.0) for y in (box[1], box[3]))
    return left, top, right, bottom


def _draw_label(
    draw: ImageDraw.ImageDraw,
    box: tuple[float, float, float, float],
    text: str,
    color: Color,
    font: ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    """A filled strip above the box (inside it at the upper edge of the image), moved left where it would leave the image."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0, min(box[0], size[0] - width))
    y = box[1] - height if box[1] >= height else min(box[1], max(0, size[1] - height))
    draw.rectangle((x, y, x + width, y + height), fill=color)
    brightness = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    draw.text((x + 2 - left, y + 2 - top), text, fill="black" if brightness > 140 else "white", font=font)
