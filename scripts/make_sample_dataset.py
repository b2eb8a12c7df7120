"""Draw a small object detection dataset: textured shapes on textured backgrounds, as COCO files.

    python scripts/make_sample_dataset.py demo/data --train 400 --val 80 --test 40 --size 256 --seed 7

writes `{train,val,test}/*.jpg`, `annotations/instances_{train,val,test}.json` and `classmap.txt`. An image depends only
on the seed, its split and its number, so a larger dataset begins with the images of a smaller one. Objects overlap;
boxes bound the visible pixels of an object, masks (`segmentation`, as run lengths) are exactly these pixels, and at
least `MIN_VISIBLE` of every object is visible.
"""

from __future__ import annotations

import colorsys
import io
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from drawn_dataset import SPLITS, box_of, draw_splits
from PIL import Image, ImageDraw, ImageFilter

CLASSES = ("disc", "square", "triangle", "star", "ring")  # category ids 1..5, in this order
ASPECTS = ((1.0, 1.0), (1.0, 0.75), (0.75, 1.0))  # (width, height) relative to --size
MAX_OBJECTS = 6
RADIUS = (0.075, 0.21)  # relative to the image's shorter side
MIN_VISIBLE = 0.45  # minimum visible share of an object's area
SUPERSAMPLING = 4


@dataclass
class DrawnObject:
    label: int  # index into CLASSES
    mask: np.ndarray  # [H, W] bool, visible pixels of the object
    full_area: float  # pixels of the object without occlusion and cropping

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x, y, width, height in pixels: the smallest box that contains every visible pixel."""
        return box_of(self.mask)


@dataclass
class Scene:
    image: Image.Image
    objects: list[DrawnObject]  # back to front


def draw_scene(rng: np.random.Generator, size: int) -> Scene:
    """An image with 1..MAX_OBJECTS objects; its longer side is `size` pixels."""
    width, height = (round(size * share) for share in ASPECTS[rng.integers(len(ASPECTS))])
    canvas = _background(rng, width, height)
    objects: list[DrawnObject] = []
    for _ in range(int(rng.integers(1, MAX_OBJECTS + 1))):
        _add_object(rng, canvas, objects)
    return Scene(_camera(rng, canvas), objects)


# Background


def _background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """[H, W, 3] float 0..255: a gradient between two muted colors, noise of several frequencies, some scratches."""
    first, second = (np.array(_color(rng, saturation=(0.0, 0.35), value=(0.2, 0.85)), np.float32) for _ in range(2))
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    slope = (x / width - 0.5) * math.cos(angle) + (y / height - 0.5) * math.sin(angle) + 0.5
    canvas = first + (second - first) * slope[..., None]
    for cells, strength in ((3, 30), (8, 22), (24, 16), (64, 10)):
        canvas += _noise(rng, width, height, cells)[..., None] * strength * rng.uniform(0.3, 1.0)
    return np.clip(_scratches(rng, canvas), 0, 255)


def _noise(rng: np.random.Generator, width: int, height: int, cells: int) -> np.ndarray:
    """[H, W] smooth noise of about unit strength, `cells` waves across."""
    grid = rng.normal(size=(cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def _scratches(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Thin lines that belong to no class."""
    height, width = canvas.shape[:2]
    layer = Image.new("L", (width, height))
    draw = ImageDraw.Draw(layer)
    for _ in range(int(rng.integers(0, 5))):
        ends = [(float(rng.uniform(0, width)), float(rng.uniform(0, height))) for _ in range(2)]
        draw.line(ends, fill=int(rng.integers(60, 160)), width=int(rng.integers(1, 4)))
    share = np.asarray(layer, np.float32)[..., None] / 255
    return canvas * (1 - share) + np.array(_color(rng, (0.0, 0.4), (0.1, 0.9)), np.float32) * share


def _color(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> tuple[float, float, float]:
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return red * 255, green * 255, blue * 255


# Objects


def _add_object(rng: np.random.Generator, canvas: np.ndarray, objects: list[DrawnObject]) -> None:
    """Draw an object in front, at a position where it does not hide others too much; give up after some attempts."""
    height, width = canvas.shape[:2]
    low, high = (math.log(share * min(width, height)) for share in RADIUS)
    for _ in range(12):
        label = int(rng.integers(len(CLASSES)))
        radius, angle = math.exp(rng.uniform(low, high)), rng.uniform(0, 2 * math.pi)
        center = (rng.uniform(0, width), rng.uniform(0, height))
        coverage, corner = _coverage(label, center, radius, angle, rng.uniform(0.8, 1.0))
        full_area = float(np.count_nonzero(coverage >= 0.5))
        side, (x0, y0) = len(coverage), corner
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x0 + side, width), min(y0 + side, height)
        inside = (slice(top, bottom), slice(left, right))
        coverage = coverage[top - y0 : bottom - y0, left - x0 : right - x0]
        mask = np.zeros((height, width), bool)
        mask[inside] = coverage >= 0.5
        still_seen = [np.count_nonzero(other.mask & ~mask) / other.full_area for other in objects]
        if np.count_nonzero(mask) < MIN_VISIBLE * full_area or min(still_seen, default=1.0) < MIN_VISIBLE:
            continue
        for other in objects:
            other.mask &= ~mask
        objects.append(DrawnObject(label, mask, full_area))
        y, x = np.mgrid[inside].astype(np.float32)
        paint = _texture(rng, (x - center[0]) / radius, (y - center[1]) / radius, angle)
        canvas[inside] += coverage[..., None] * (paint - canvas[inside])
        return


def _coverage(
    label: int, center: tuple[float, float], radius: float, angle: float, squeeze: float
) -> tuple[np.ndarray, tuple[int, int]]:
    """Share 0..1 of each pixel covered by the shape, in a square [S, S] around it, and the square's corner x, y."""
    margin = math.ceil(radius) + 2
    corner = (math.floor(center[0]) - margin, math.floor(center[1]) - margin)
    patch = Image.new("L", ((2 * margin + 2) * SUPERSAMPLING,) * 2)
    draw = ImageDraw.Draw(patch)
    for outline, fill in _outlines(CLASSES[label]):
        points = []
        for x, y in outline:
            y *= squeeze
            turned = (x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle))
            points.append(
                tuple((c - o + radius * t) * SUPERSAMPLING for c, o, t in zip(center, corner, turned, strict=True))
            )
        draw.polygon(points, fill=fill)
    return np.asarray(patch.reduce(SUPERSAMPLING), dtype=np.float32) / 255, corner


def _outlines(name: str) -> list[tuple[list[tuple[float, float]], int]]:
    """Polygons of a shape in the unit circle, each with its fill: 255 adds, 0 cuts out."""
    if name == "disc":
        return [(_circle(64), 255)]
    if name == "square":
        return [([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)], 255)]
    if name == "triangle":
        return [(_circle(3), 255)]
    if name == "star":
        return [([(x * r, y * r) for (x, y), r in zip(_circle(10), (1.0, 0.42) * 5, strict=True)], 255)]
    if name == "ring":
        return [(_circle(64), 255), ([(x * 0.55, y * 0.55) for x, y in _circle(64)], 0)]
    raise ValueError(f"unknown shape {name}")


def _circle(corners: int) -> list[tuple[float, float]]:
    angles = (2 * math.pi * k / corners for k in range(corners))
    return [(math.cos(a), math.sin(a)) for a in angles]


def _texture(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, angle: float) -> np.ndarray:
    """[H, W, 3] colors of an object: two as stripes, checks, dots or a gradient, or only one; with grain.

    `x` and `y` are distances from its center in radii.
    """
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    waves = rng.uniform(5, 11)
    pattern = {
        "plain": lambda: np.zeros_like(u),
        "slope": lambda: np.clip(u / 2 + 0.5, 0, 1),
        "stripes": lambda: (np.sin(waves * u) > 0).astype(np.float32),
        "checks": lambda: ((np.sin(waves * u) > 0) ^ (np.sin(waves * v) > 0)).astype(np.float32),
        "dots": lambda: (np.sin(waves * u) * np.sin(waves * v) > 0.35).astype(np.float32),
    }
    share = pattern[tuple(pattern)[rng.integers(len(pattern))]]()[..., None]
    first = np.array(_color(rng, (0.55, 1.0), (0.55, 1.0)), np.float32)
    second = first * rng.uniform(0.35, 0.75) + np.array(_color(rng, (0.0, 1.0), (0.3, 1.0)), np.float32) * 0.25
    return first + (second - first) * share + rng.normal(scale=6, size=(*u.shape, 1))


# Camera


def _camera(rng: np.random.Generator, canvas: np.ndarray) -> Image.Image:
    """Exposure, a slight blur, sensor noise."""
    exposed = np.clip(canvas * rng.uniform(0.8, 1.1) + rng.uniform(-8, 8), 0, 255)
    image = Image.fromarray(exposed.astype(np.uint8)).filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.9)))
    grain = rng.standard_normal(canvas.shape, np.float32)
    noisy = np.asarray(image, np.float32) + rng.uniform(1, 7) * grain
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


# Files


def write_split(root: Path, split: str, count: int, size: int, seed: int) -> int:
    """Write one split; returns its number of objects."""
    (root / split).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(count):
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        scene = draw_scene(rng, size)
        name = f"{split}_{index:05d}.jpg"
        _write(root / split / name, _jpeg(scene.image, quality=int(rng.integers(75, 96))))
        width, height = scene.image.size
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        for item in scene.objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": item.label + 1,
                    "bbox": list(item.box),
                    "area": int(np.count_nonzero(item.mask)),
                    "iscrowd": 0,
                    "segmentation": _run_lengths(item.mask),
                }
            )
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    _write(root / "annotations" / f"instances_{split}.json", json.dumps(content).encode())
    return len(annotations)


def _run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths of a mask [H, W]: pixels column by column, background first."""
    pixels = np.concatenate([[False], mask.ravel(order="F")])
    starts = np.flatnonzero(pixels[1:] != pixels[:-1])
    counts = np.diff(starts, prepend=0, append=mask.size)
    return {"size": list(mask.shape), "counts": counts.tolist()}


def _jpeg(image: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def main(arguments: list[str] | None = None) -> int:
    description = "Draw a small object detection dataset as COCO files."
    out = draw_splits(arguments, write_split, description, 256, "longer side of an image")
    _write(out / "classmap.txt", "".join(f"{name}\n" for name in CLASSES).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
