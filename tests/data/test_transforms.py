from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rtdetr_tool.data.transforms import TrainTransform, draw_iou_crop, draw_zoom_out, to_relative
from rtdetr_tool.data.window import Window
from rtdetr_tool.ops.boxes import cxcywh_to_xyxy

sizes = st.tuples(st.sampled_from([64, 96, 128]), st.sampled_from([64, 96, 128]))


@st.composite
def scenes(draw):
    """A black image with one white rectangle, and that rectangle as xyxy pixels."""
    height, width = draw(st.integers(24, 120)), draw(st.integers(24, 120))
    x1, y1 = draw(st.integers(0, width - 9)), draw(st.integers(0, height - 9))
    x2, y2 = draw(st.integers(x1 + 8, width)), draw(st.integers(y1 + 8, height))
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, y1:y2, x1:x2] = 255
    return image, torch.tensor([[x1, y1, x2, y2]], dtype=torch.float64)


@settings(max_examples=300, deadline=None)
@given(scenes(), sizes, st.integers(0, 2**32), st.sampled_from([0.0, 0.8, 1.0]), st.booleans())
def test_after_all_transforms_the_box_bounds_the_white_pixels(scene, size, seed, crop, preserve) -> None:
    image, boxes = scene
    transform = TrainTransform(size, 0.0, crop, preserve)
    output, result, labels = transform(image, boxes, torch.tensor([3]), np.random.default_rng(seed))
    height, width = output.shape[-2:]
    assert (height, width) == ((max(size),) * 2 if preserve else size)
    assert output.dtype == torch.uint8 and result.dtype == torch.float32 and len(result) == len(labels)
    lit = (output[0] > 127).nonzero()
    if not len(result):
        # Removed because its center was cropped or less than a pixel remained, so only a small part can be visible.
        return
    assert labels.tolist() == [3]
    x1, y1, x2, y2 = (cxcywh_to_xyxy(result[0]) * torch.tensor([width, height, width, height])).tolist()
    assert -1e-4 <= x1 < x2 <= width + 1e-3 and -1e-4 <= y1 < y2 <= height + 1e-3
    if len(lit):
        top, left = lit.min(dim=0).values.tolist()
        bottom, right = (lit.max(dim=0).values + 1).tolist()
        # At most half a source pixel of blur, which grows with upscaling.
        assert np.abs([x1 - left, y1 - top, x2 - right, y2 - bottom]).max() <= 1.01
    else:
        assert min(x2 - x1, y2 - y1) < 2.1  # too thin to be visible after downscaling


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 200), st.integers(3, 200), st.integers(0, 12), st.booleans())
def test_targets_are_valid_whatever_the_image(seed, height, width, count, preserve) -> None:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(-5, 1.2, (count, 2, 2)) * [width, height], axis=1).reshape(-1, 4)
    image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    transform = TrainTransform((64, 96), 1.0, 1.0, preserve)
    labels = torch.arange(count)
    output, boxes, kept = transform(image, torch.from_numpy(corners), labels, rng)
    assert output.dtype == torch.uint8
    assert ((boxes >= 0) & (boxes <= 1)).all()
    limits = cxcywh_to_xyxy(boxes)
    assert (limits > -1e-6).all() and (limits < 1 + 1e-6).all()
    assert (boxes[:, 2:] * torch.tensor(output.shape[:0:-1]) >= 0.999).all()
    assert len(set(kept.tolist())) == len(kept) == len(boxes)


def test_the_same_seed_gives_the_same_sample_and_another_seed_another() -> None:
    image = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8)
    boxes, labels = torch.tensor([[5.0, 5.0, 30.0, 40.0]]), torch.tensor([1])
    transform = TrainTransform((64, 64))

    def sample(seed):
        return transform(image.clone(), boxes.clone(), labels, np.random.default_rng(seed))

    for seed in range(10):
        assert all(torch.equal(a, b) for a, b in zip(sample(seed), sample(seed), strict=True))
    assert not torch.equal(sample(1)[0], sample(2)[0])


def test_inputs_are_not_changed() -> None:
    image = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8)
    boxes, labels = torch.tensor([[5.0, 5.0, 30.0, 40.0]], dtype=torch.float64), torch.tensor([1])
    copies = image.clone(), boxes.clone(), labels.clone()
    for seed in range(20):
        TrainTransform((64, 64))(image, boxes, labels, np.random.default_rng(seed))
    assert torch.equal(image, copies[0]) and torch.equal(boxes, copies[1]) and torch.equal(labels, copies[2])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_zooming_out_keeps_the_image_whole_on_a_canvas_of_one_to_four_times(seed) -> None:
    canvas = draw_zoom_out(np.random.default_rng(seed), Window(0, 0, 40, 30))
    assert canvas.left <= 0 and canvas.top <= 0 and canvas.right >= 40 and canvas.bottom >= 30
    assert 40 <= canvas.width <= 160 and 30 <= canvas.height <= 120
    assert abs(canvas.width / 40 - canvas.height / 30) < 0.04


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_a_crop_keeps_a_center_and_stays_in_the_window(seed, count) -> None:
    rng = np.random.default_rng(seed)
    window = Window(-20, -10, 120, 90)
    low = rng.uniform(0, 60, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(2, 20, (count, 2))], axis=1)
    crop, keep = draw_iou_crop(rng, window, boxes)
    assert crop.left >= -20 and crop.top >= -10 and crop.right <= 100 and crop.bottom <= 80
    assert keep.any()
    if crop != window:
        assert 0.5 <= crop.width / crop.height <= 2
        assert crop.width >= int(0.3 * 120) and crop.height >= int(0.3 * 90)
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = (centers > [crop.left, crop.top]).all(1) & (centers < [crop.right, crop.bottom]).all(1)
        assert (inside == keep).all()
    else:
        assert keep.all()


def test_the_crop_follows_torchvisions_distribution() -> None:
    from scipy.stats import ks_2samp
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    boxes = np.array([[10.0, 10, 60, 50], [100, 80, 180, 140]])
    reference = v2.RandomIoUCrop()
    frame = tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=(160, 200))
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    ours_areas, their_areas = [], []
    for _ in range(2000):
        crop, _ = draw_iou_crop(rng, Window(0, 0, 200, 160), boxes)
        ours_areas.append(crop.width * crop.height / 32000)
    for _ in range(150):
        drawn = reference.make_params([tv_tensors.Image(torch.zeros(3, 160, 200)), frame])
        their_areas.append(drawn["width"] * drawn["height"] / 32000 if drawn else 1.0)
    # Kolmogorov-Smirnov: the distance exceeds 0.17 by chance in less than one of a thousand cases.
    assert ks_2samp(ours_areas, their_areas).statistic < 0.17


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 500)])
def test_tiny_and_thin_images_are_accepted(size) -> None:
    image = torch.zeros(3, *size, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, size[1], size[0]]], dtype=torch.float64)
    for seed in range(30):
        output, result, _ = TrainTransform((64, 64), 1.0, 1.0, True)(
            image, boxes, torch.zeros(1, dtype=torch.long), np.random.default_rng(seed)
        )
        assert output.shape == (3, 64, 64) and ((result >= 0) & (result <= 1)).all()


def test_without_objects_there_is_no_crop() -> None:
    nothing = np.zeros((0, 4))
    window = Window(0, 0, 50, 40)
    for seed in range(50):
        assert draw_iou_crop(np.random.default_rng(seed), window, nothing)[0] == window


def test_probability_zero_of_distortion_and_crop_leaves_colors_and_objects() -> None:
    image = torch.full((3, 40, 40), 200, dtype=torch.uint8)
    boxes = torch.tensor([[1.0, 1, 20, 20], [20, 20, 39, 39]], dtype=torch.float64)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        output, result, _ = TrainTransform((64, 64), 0.0, 0.0)(image, boxes, torch.arange(2), rng)
        assert len(result) == 2
        assert output.max() == 200


def test_relative_boxes_are_center_and_size_over_width_and_height() -> None:
    boxes = to_relative(np.array([[10.0, 5.0, 30.0, 25.0]]), (50, 100))
    assert np.allclose(boxes, [[0.2, 0.3, 0.2, 0.4]]) and boxes.dtype == np.float32
    assert to_relative(np.zeros((0, 4)), (50, 100)).shape == (0, 4)
