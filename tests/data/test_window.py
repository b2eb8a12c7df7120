from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from rtdetr_tool.data.preprocess import resize
from rtdetr_tool.data.window import Window, render


def image(seed: int, height: int, width: int, channels_last: bool) -> torch.Tensor:
    plain = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return plain.permute(1, 2, 0).contiguous().permute(2, 0, 1) if channels_last else plain


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 1000), st.integers(4, 60), st.integers(4, 60), st.booleans(), st.booleans(),
    st.tuples(st.integers(0, 80), st.integers(0, 80), st.integers(0, 80), st.integers(0, 80)), st.data(),
)  # fmt: skip
def test_rendering_equals_pad_crop_flip_and_resize_one_after_the_other(
    seed, height, width, channels_last, mirrored, padding, data
) -> None:
    pixels = image(seed, height, width, channels_last)
    left, top = padding[:2]
    canvas = F.pad(pixels, list(padding), fill=0)
    x, y = data.draw(st.integers(0, canvas.shape[2] - 2)), data.draw(st.integers(0, canvas.shape[1] - 2))
    w, h = data.draw(st.integers(1, canvas.shape[2] - x)), data.draw(st.integers(1, canvas.shape[1] - y))
    expected = F.crop(canvas, y, x, h, w)
    expected = F.horizontal_flip(expected) if mirrored else expected
    expected = F.resize(expected, [40, 56], antialias=True)
    result = render(pixels, Window(x - left, y - top, w, h), (40, 56), (40, 56), mirrored)
    assert result.shape == (3, 40, 56) and result.dtype == torch.uint8
    # torchvision has two kernels, one per memory format, that round differently.
    assert (result.int() - expected.int()).abs().max() <= 1


def test_padding_is_black_on_the_right_and_below() -> None:
    white = torch.full((3, 20, 10), 255, dtype=torch.uint8)
    result = render(white, Window(0, 0, 10, 20), (32, 16), (32, 32), mirrored=True)
    assert (result[:, :, :16] == 255).all() and (result[:, :, 16:] == 0).all()


def test_boxes_move_with_the_window_and_are_clipped_at_its_border() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 5, 30, 30], [19, 19, 20.5, 40], [40, 40, 50, 50], [4, 4, 5.9, 30]], float)
    moved, keep = Window(5, 5, 15, 15).clip(boxes)
    assert keep.tolist() == [True, True, True, False, False]
    assert moved.tolist() == [[0, 0, 5, 5], [0, 0, 15, 15], [14, 14, 15, 15]]
    moved, keep = Window(-10, -20, 100, 100).clip(boxes[:1])
    assert moved.tolist() == [[10, 20, 20, 30]]


@pytest.mark.parametrize(
    "window", [Window(-5, 2, 60, 9), Window(10, 10, 5, 5), Window(-90, -90, 300, 250), Window(40, 0, 9, 9)]
)
def test_the_visible_part_of_a_window_is_its_overlap_with_the_image(window) -> None:
    rows, columns = window.visible(20, 30)
    inside = np.zeros((20, 30), bool)
    inside[rows, columns] = True
    y, x = np.mgrid[:20, :30]
    expected = (y >= window.top) & (y < window.bottom) & (x >= window.left) & (x < window.right)
    assert np.array_equal(inside, expected)
    assert inside.any() == (window.left < 30)


def test_zooming_out_of_an_image_resamples_no_black_beyond_its_surroundings(monkeypatch) -> None:
    from rtdetr_tool.data import window as module

    resized = []
    monkeypatch.setattr(module, "resize", lambda part, size: resized.append(part.numel()) or resize(part, size))
    pixels = image(0, 48, 64, True)
    result = render(pixels, Window(-96, -72, 256, 192), (64, 64), (64, 64), False)
    assert sum(resized) < 256 * 192 * 3 / 2  # the whole canvas
    expected = F.resize(F.pad(pixels, [96, 72, 96, 72]), [64, 64], antialias=True)
    assert (result.int() - expected.int()).abs().max() <= 1
