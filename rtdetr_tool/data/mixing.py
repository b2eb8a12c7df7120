"""Mixup and copy-paste of two images of the network's size, and samples made of several images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rtdetr_tool.data.mosaic import PARTS, mosaic
from rtdetr_tool.data.scene import PlacedScene, Scene, Shapes
from rtdetr_tool.data.transforms import TrainTransform
from rtdetr_tool.ops.boxes import cxcywh_to_xyxy

MIXUP_WEIGHT = (0.45, 0.55)  # of the first image
MIN_VISIBLE = 0.1  # share of an object below which it counts as hidden by a pasted one


@dataclass(frozen=True)
class Mixing:
    """Probabilities of the steps that combine images."""

    mosaic_prob: float = 0.0
    mixup_prob: float = 0.0
    copy_paste_prob: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.mosaic_prob or self.mixup_prob or self.copy_paste_prob)

    def sample(
        self,
        scene: Scene,
        read: Callable[[np.random.Generator], Scene],
        transform: TrainTransform,
        rng: np.random.Generator,
        mixing_rng: np.random.Generator,
    ) -> PlacedScene:
        """The image of a sample, combined with others.

        Args:
            read: reads a random image of the dataset.
            rng: of the steps of the image; used as if it was not combined.
            mixing_rng: of everything else.
        """

        def base(scene: Scene, rng: np.random.Generator) -> PlacedScene:
            """A mosaic or a single image."""
            if mixing_rng.random() >= self.mosaic_prob:
                return transform.scene(scene, rng)
            return mosaic([scene, *(read(mixing_rng) for _ in range(PARTS - 1))], transform, mixing_rng)

        mix, paste = mixing_rng.random(2) < (self.mixup_prob, self.copy_paste_prob)
        placed = base(scene, rng)
        if paste:
            placed = copy_paste(placed, transform.scene(read(mixing_rng), mixing_rng), mixing_rng)
        if mix:
            second = base(read(mixing_rng), mixing_rng)
            placed = mixup(placed, second, mixing_rng.uniform(*MIXUP_WEIGHT))
        return placed


def mixup(first: PlacedScene, second: PlacedScene, weight: float) -> PlacedScene:
    """The images blended, with the objects of both (Zhang et al. 2018, arXiv:1710.09412, for detection).

    Args:
        weight: of the first image, rounded to 8 binary digits.
    """
    share = round(weight * 256)
    blended = _channels_last(first.image).astype(np.uint16) * np.uint16(share)
    blended += _channels_last(second.image).astype(np.uint16) * np.uint16(256 - share)
    blended += np.uint16(128)
    blended >>= 8
    image = torch.from_numpy(blended.astype(np.uint8)).permute(2, 0, 1)
    return _joined(image, first, second)


def copy_paste(first: PlacedScene, second: PlacedScene, rng: np.random.Generator) -> PlacedScene:
    """A random subset of the second image's objects pasted onto the first (Ghiasi et al. 2021, arXiv:2012.07177).

    Objects without a mask are not pasted. Masks of hidden objects lose the hidden part, their boxes shrink to the rest,
    and objects of which less than `MIN_VISIBLE` remains are removed.
    """
    masks = second.shapes.masks
    assert masks is not None  # the records of the dataset were read with masks
    usable = np.flatnonzero([np.count_nonzero(mask) for mask in masks.numpy()])
    if not len(usable):
        return first
    chosen = torch.from_numpy(np.sort(rng.permutation(usable)[: rng.integers(1, len(usable) + 1)]))
    pasted = PlacedScene(second.image, second.boxes[chosen], second.labels[chosen], second.shapes.select(chosen))
    covered = masks[chosen].any(0)
    image = _channels_last(first.image).copy()
    image[covered.numpy()] = _channels_last(second.image)[covered.numpy()]
    return _joined(torch.from_numpy(image).permute(2, 0, 1), _without_hidden(first, covered), pasted)


def _without_hidden(scene: PlacedScene, covered: Tensor) -> PlacedScene:
    """The objects that remain visible, with smaller masks and boxes."""
    masks = scene.shapes.masks
    assert masks is not None
    height, width = covered.shape
    boxes, remaining = scene.boxes.clone(), masks & ~covered
    keep = torch.ones(len(boxes), dtype=torch.bool)
    sides = torch.tensor([width, height, width, height])
    for index, (before, after) in enumerate(zip(masks, remaining, strict=True)):
        area, rest = int(before.sum()), int(after.sum())
        if not area:  # without a mask, the box is all that is known
            x1, y1, x2, y2 = (cxcywh_to_xyxy(boxes[index]) * sides).round().int().tolist()
            part = covered[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
            keep[index] = bool(part.float().mean() <= 1 - MIN_VISIBLE)
        elif rest < MIN_VISIBLE * area or not rest:
            keep[index] = False
        elif rest < area:
            boxes[index] = _bounds(after) / sides
    shapes = replace(scene.shapes, masks=remaining).select(keep)
    return PlacedScene(scene.image, boxes[keep], scene.labels[keep], shapes)


def _bounds(mask: Tensor) -> Tensor:
    """cxcywh pixels of a mask [H, W] that is not empty."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    y1, y2, x1, x2 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])


def _joined(image: Tensor, first: PlacedScene, second: PlacedScene) -> PlacedScene:
    boxes, labels = torch.cat([first.boxes, second.boxes]), torch.cat([first.labels, second.labels])
    return PlacedScene(image, boxes, labels, Shapes.joined([first.shapes, second.shapes]))


def _channels_last(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()
