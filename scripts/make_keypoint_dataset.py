"""Draw a small keypoint dataset: stick figures with a head, a hip, two hands and two feet, and balls without keypoints.

    python scripts/make_keypoint_dataset.py demo/keypoints --train 400 --val 80 --test 40 --size 192 --seed 7

writes `{train,val,test}/*.png` and `annotations/person_keypoints_{train,val,test}.json`. An image depends only on the
seed, its split and its number. Figures stand upright and face the viewer, so their left hand is on the right. A
keypoint behind another object has visibility 1, one outside the image 0.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from drawn_dataset import SPLITS, box_of, draw_splits
from PIL import Image, ImageDraw

KEYPOINTS = ("head", "hip", "left_hand", "right_hand", "left_foot", "right_foot")
SKELETON = ((1, 2), (1, 3), (1, 4), (2, 5), (2, 6))  # from 1, as in COCO
CATEGORIES = (
    {"id": 1, "name": "figure", "keypoints": list(KEYPOINTS), "skeleton": [list(pair) for pair in SKELETON]},
    {"id": 2, "name": "ball"},
)
MAX_OBJECTS = 3
HEIGHT = (0.35, 0.75)  # of a figure, relative to the image
SMALLEST = 8  # pixels of a side of a box


@dataclass
class DrawnObject:
    category: int
    mask: np.ndarray  # [H, W] bool, also where other objects hide it
    points: np.ndarray  # [K, 2] x, y in pixels; no rows for a ball
    hidden: np.ndarray  # [K] bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x, y, width, height in pixels."""
        return box_of(self.mask)


def draw_scene(rng: np.random.Generator, size: int) -> tuple[Image.Image, list[DrawnObject]]:
    """A square image with 1..MAX_OBJECTS objects, back to front."""
    background = rng.uniform(20, 110, 3) + rng.normal(scale=8, size=(size, size, 3))
    image = Image.fromarray(np.clip(background, 0, 255).astype(np.uint8))
    objects: list[DrawnObject] = []
    for _ in range(int(rng.integers(1, MAX_OBJECTS + 1))):
        color = tuple(int(value) for value in rng.uniform(140, 255, 3))
        layer = Image.new("L", (size, size))
        draw = ImageDraw.Draw(layer)
        is_figure = rng.random() < 0.75
        points = _figure(rng, draw, size) if is_figure else _ball(rng, draw, size)
        mask = np.asarray(layer) > 0
        if not mask.any() or min(_sides(mask)) < SMALLEST:
            continue
        image.paste(color, mask=layer)
        for other in objects:
            other.hidden |= _covered(other.points, mask)
        objects.append(DrawnObject(1 if is_figure else 2, mask, points, np.zeros(len(points), bool)))
    return image, objects


def _figure(rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: int) -> np.ndarray:
    """Draw a figure; returns its keypoints [6, 2]."""
    height = rng.uniform(*HEIGHT) * size
    head = np.array([rng.uniform(0.15, 0.85), rng.uniform(0.12, 0.4)]) * size
    hip = head + np.array([rng.uniform(-0.06, 0.06), 0.5]) * height
    shoulder = head + 0.3 * (hip - head)
    points = [head, hip]
    for start, length, low, high in ((shoulder, 0.38, -50, 70), (hip, 0.45, 55, 85)):
        for side in (1, -1):  # left is on the right of the image
            angle = math.radians(rng.uniform(low, high))
            points.append(start + length * height * np.array([side * math.cos(angle), math.sin(angle)]))
    width = max(2, round(height / 18))
    for a, b in ((head, hip), *((shoulder, hand) for hand in points[2:4]), *((hip, foot) for foot in points[4:])):
        draw.line([*a, *b], fill=255, width=width)
    _circle(draw, head, height / 9)
    return np.array(points)


def _ball(rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: int) -> np.ndarray:
    _circle(draw, rng.uniform(0.1, 0.9, 2) * size, rng.uniform(0.06, 0.14) * size)
    return np.zeros((0, 2))


def _circle(draw: ImageDraw.ImageDraw, center: np.ndarray, radius: float) -> None:
    draw.ellipse([*(center - radius), *(center + radius)], fill=255)


def _sides(mask: np.ndarray) -> tuple[int, int]:
    return np.count_nonzero(mask.any(0)), np.count_nonzero(mask.any(1))


def _covered(points: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Which points are behind the mask."""
    x, y = (points.round().astype(int).clip(0, np.array(mask.shape[::-1]) - 1)).T
    return mask[y, x]


def keypoints_of(item: DrawnObject) -> list[float]:
    """COCO's `keypoints`: x, y, visibility."""
    height, width = item.mask.shape
    values: list[float] = []
    for (x, y), hidden in zip(item.points.tolist(), item.hidden.tolist(), strict=True):
        inside = 0 <= x < width and 0 <= y < height
        values += (round(x, 1), round(y, 1), 1 if hidden else 2) if inside else (0, 0, 0)
    return values


def write_split(root: Path, split: str, count: int, size: int, seed: int) -> int:
    """Write one split; returns its number of objects."""
    (root / split).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(count):
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        image, objects = draw_scene(rng, size)
        name = f"{split}_{index:05d}.png"
        image.save(root / split / name)
        images.append({"id": index + 1, "file_name": name, "width": size, "height": size})
        for item in objects:
            annotation = {
                "id": len(annotations) + 1, "image_id": index + 1, "category_id": item.category,
                "bbox": list(item.box), "area": int(np.count_nonzero(item.mask)), "iscrowd": 0,
            }  # fmt: skip
            if len(item.points):
                values = keypoints_of(item)
                annotation |= {"keypoints": values, "num_keypoints": sum(visible > 0 for visible in values[2::3])}
            annotations.append(annotation)
    (root / "annotations").mkdir(exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": list(CATEGORIES)}
    (root / "annotations" / f"person_keypoints_{split}.json").write_text(json.dumps(content))
    return len(annotations)


def main(arguments: list[str] | None = None) -> int:
    draw_splits(arguments, write_split, "Draw a small keypoint dataset as COCO files.", 192, "side of an image")
    return 0


if __name__ == "__main__":
    sys.exit(main())
