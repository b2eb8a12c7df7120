from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from rtdetr_tool.data.photometric import (
    Distortion,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    draw_distortion,
)


def every_color(step: int = 5) -> torch.Tensor:
    values = torch.arange(0, 256, step, dtype=torch.uint8)
    return torch.cartesian_prod(values, values, values).reshape(len(values), -1, 3).permute(2, 0, 1)


OPERATIONS = {
    "brightness": (adjust_brightness, F.adjust_brightness, (0.875, 1.0, 1.06, 1.125)),
    "contrast": (adjust_contrast, F.adjust_contrast, (0.5, 0.77, 1.0, 1.31, 1.5)),
    "saturation": (adjust_saturation, F.adjust_saturation, (0.5, 0.77, 1.0, 1.31, 1.5)),
    "hue": (adjust_hue, F.adjust_hue, (-1 / 16, -0.05, -0.031, -0.001, 0.0, 0.002, 0.017, 0.05, 1 / 16)),
}


def largest_difference(operation: str, image: torch.Tensor, amount: float) -> int:
    ours, reference, _ = OPERATIONS[operation]
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    before = pixels.copy()
    result = ours(pixels, amount)
    assert np.array_equal(pixels, before) and result.dtype == np.uint8
    expected = reference(image, amount).permute(1, 2, 0).numpy()
    return int(np.abs(result.astype(int) - expected).max())


@pytest.mark.parametrize(
    ("operation", "amount"), [(name, amount) for name, (_, _, amounts) in OPERATIONS.items() for amount in amounts]
)
def test_an_operation_equals_torchvisions_to_one_gray_level_on_a_lattice_of_all_colors(operation, amount) -> None:
    assert largest_difference(operation, every_color(), amount) <= 1


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 2**32), st.floats(0, 1), st.integers(1, 150), st.booleans())
def test_an_operation_equals_torchvisions_on_random_images(operation, seed, share, height, gray) -> None:
    shape = (1 if gray else 3, height, 17)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    amounts = OPERATIONS[operation][2]
    amount = amounts[0] + share * (amounts[-1] - amounts[0])
    assert largest_difference(operation, image.expand(3, -1, -1), amount) <= 1


def test_a_hue_shift_beyond_the_method_is_refused() -> None:
    with pytest.raises(ValueError, match="hue shift"):
        adjust_hue(np.zeros((2, 2, 3), np.uint8), 0.2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_a_distortion_is_torchvisions_operations_in_torchvisions_order(seed) -> None:
    image = torch.randint(0, 256, (3, 24, 31), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    made = draw_distortion(np.random.default_rng(seed), 1.0)
    before = image.clone()
    expected = F.adjust_brightness(image, made.brightness)
    if made.contrast_first:
        expected = F.adjust_contrast(expected, made.contrast)
    expected = F.adjust_hue(F.adjust_saturation(expected, made.saturation), made.hue)
    if not made.contrast_first:
        expected = F.adjust_contrast(expected, made.contrast)
    expected = F.permute_channels(expected, list(made.channels))
    difference = (made(image).int() - expected.int()).abs().float()
    # One level each; contrast and saturation may enlarge the earlier ones by half.
    assert difference.max() <= 5 and difference.mean() < 1
    assert torch.equal(image, before)


def test_without_probability_nothing_changes_and_with_it_each_part_is_independent() -> None:
    rng = np.random.default_rng(0)
    image = every_color(51)
    assert all(draw_distortion(rng, 0.0)(image) is image for _ in range(20))
    drawn = [draw_distortion(rng, 0.8) for _ in range(4000)]
    for part in ("brightness", "contrast", "saturation", "hue", "channels"):
        share = np.mean([getattr(one, part) is not None for one in drawn])
        assert abs(share - 0.8) < 0.03, part
    both = np.mean([one.hue is not None and one.contrast is not None for one in drawn])
    assert abs(both - 0.64) < 0.03
    assert abs(np.mean([one.contrast_first for one in drawn]) - 0.5) < 0.03
    assert min(one.brightness for one in drawn if one.brightness) > 0.874
    assert max(abs(one.hue) for one in drawn if one.hue is not None) <= 0.05


def test_a_distorted_image_stays_uint8_of_the_same_shape() -> None:
    image = torch.zeros(3, 5, 7, dtype=torch.uint8)
    result = Distortion(1.1, 1.5, 0.5, 0.05, True, (2, 0, 1))(image)
    assert result.shape == image.shape and result.dtype == torch.uint8
