"""Mixup and copy-paste: pixels, boxes and masks of two images."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rtdetr_tool.data.mixing import Mixing, copy_paste, mixup
from rtdetr_tool.data.scene import PlacedScene, Scene, Shapes
from rtdetr_tool.data.transforms import TrainTransform
from rtdetr_tool.ops.boxes import cxcywh_to_xyxy

SIZE = (40, 60)


def placed(seed: int, label: int, count: int, channels: int = 3) -> PlacedScene:
    """An image of noise with filled ellipses as objects; the label is that of all of them."""
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.integers(0, 256, (*SIZE, channels), dtype=np.uint8)).permute(2, 0, 1)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    masks, boxes = np.zeros((count, *SIZE), bool), np.zeros((count, 4), np.float32)
    for index in range(count):
        across, down = rng.integers(3, 15, 2)
        left, top = rng.integers(0, SIZE[1] - 2 * across), rng.integers(0, SIZE[0] - 2 * down)
        masks[index] = ((x - left - across) / across) ** 2 + ((y - top - down) / down) ** 2 <= 1
        boxes[index] = [(left + across) / SIZE[1], (top + down) / SIZE[0], 2 * across / SIZE[1], 2 * down / SIZE[0]]
    shapes = Shapes(torch.from_numpy(masks))
    return PlacedScene(image, torch.from_numpy(boxes), torch.full((count,), label), shapes)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.45, 0.55), st.integers(0, 3), st.integers(0, 3), st.sampled_from([1, 3, 4]))
def test_mixup_blends_pixels_and_keeps_all_objects(seed, weight, first, second, channels) -> None:
    a, b = placed(seed, 1, first, channels), placed(seed + 1, 2, second, channels)
    result = mixup(a, b, weight)
    expected = a.image.float() * weight + b.image.float() * (1 - weight)
    assert result.image.dtype == torch.uint8 and (result.image.float() - expected).abs().max() <= 1.01
    assert result.labels.tolist() == [1] * first + [2] * second
    assert torch.equal(result.boxes, torch.cat([a.boxes, b.boxes]))
    assert torch.equal(result.shapes.masks, torch.cat([a.shapes.masks, b.shapes.masks]))


def test_keypoints_of_both_images_are_kept() -> None:
    a = PlacedScene(torch.zeros(3, 4, 4, dtype=torch.uint8), torch.rand(2, 4), torch.zeros(2, dtype=torch.long))
    points = torch.rand(2, 5, 3)
    a = PlacedScene(a.image, a.boxes, a.labels, Shapes(keypoints=points))
    assert torch.equal(mixup(a, a, 0.5).shapes.keypoints, torch.cat([points, points]))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 5), st.integers(0, 5))
def test_copy_paste_shows_pasted_objects_in_front_and_shrinks_what_they_hide(seed, first, second) -> None:
    a, b = placed(seed, 1, first), placed(seed + 1, 2, second)
    before = a.image.clone(), a.boxes.clone(), a.shapes.masks.clone()
    result = copy_paste(a, b, np.random.default_rng(seed))
    assert all(torch.equal(x, y) for x, y in zip(before, (a.image, a.boxes, a.shapes.masks), strict=True))
    pasted = result.labels == 2
    assert bool(pasted.any()) == bool(second)
    covered = result.shapes.masks[pasted].any(0)
    assert torch.equal(result.image[:, covered], b.image[:, covered])
    assert torch.equal(result.image[:, ~covered], a.image[:, ~covered])
    assert not (result.shapes.masks[~pasted] & covered).any()
    rest = a.shapes.masks & ~covered
    visible = rest.flatten(1).sum(1) / a.shapes.masks.flatten(1).sum(1)
    assert torch.equal(result.shapes.masks[~pasted], rest[visible >= 0.1])
    sides = torch.tensor([SIZE[1], SIZE[0]] * 2)
    for mask, box, is_pasted in zip(result.shapes.masks, result.boxes, pasted, strict=True):
        if is_pasted:
            continue
        x1, y1, x2, y2 = (cxcywh_to_xyxy(box) * sides).tolist()
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        bounds = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert np.abs(bounds - [x1, y1, x2, y2]).max() <= 2.1  # the outermost rows of an ellipse may have no pixel
    assert all(any(torch.equal(box, other) for other in b.boxes) for box in result.boxes[pasted])


def test_objects_without_a_mask_are_not_pasted_and_not_removed_unless_covered() -> None:
    empty = torch.zeros(1, *SIZE, dtype=torch.bool)
    full = torch.zeros(1, *SIZE, dtype=torch.bool)
    full[0, 10:30, 10:40] = True
    box = torch.tensor([[25 / 60, 0.5, 0.5, 0.5]])
    label = torch.zeros(1, dtype=torch.long)

    def of(mask, box=box):
        return PlacedScene(torch.zeros(3, *SIZE, dtype=torch.uint8), box, label, Shapes(mask))

    rng = np.random.default_rng(0)
    assert copy_paste(of(full), of(empty), rng).boxes.shape == (1, 4)
    assert len(copy_paste(of(empty), of(full), rng).boxes) == 1  # the box was below the pasted object
    away = torch.tensor([[0.85, 0.5, 0.2, 0.2]])
    assert len(copy_paste(of(empty, away), of(full), rng).boxes) == 2


def test_a_combined_sample_reads_only_the_images_that_it_needs() -> None:
    scene = Scene(torch.zeros(3, 40, 60, dtype=torch.uint8), np.array([[5.0, 5, 30, 30]]), np.array([0]))
    transform = TrainTransform((32, 32), iou_crop_prob=0.0)
    for mixing, count in ((Mixing(), 0), (Mixing(mosaic_prob=1.0), 3), (Mixing(mixup_prob=1.0), 1),
                          (Mixing(mosaic_prob=1.0, mixup_prob=1.0), 7)):  # fmt: skip
        reads: list[int] = []
        mixing.sample(
            scene, lambda rng, reads=reads: reads.append(1) or scene, transform, np.random.default_rng(0),
            np.random.default_rng(1),
        )  # fmt: skip
        assert len(reads) == count
