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
    adjust_colors,
    adjust_contrast,
    draw_distortion,
    mean_gray,
)


def every_color(step: int = 5) -> torch.Tensor:
    values = torch.arange(0, 256, step, dtype=torch.uint8)
    return torch.cartesian_prod(values, values, values).reshape(len(values), -1, 3).permute(2, 0, 1)


OPERATIONS = {
    "brightness": (adjust_brightness, F.adjust_brightness, (0.875, 1.0, 1.06, 1.125)),
    "contrast": (
        lambda pixels, factor: adjust_contrast(pixels, factor, mean_gray(pixels)),
        F.adjust_contrast,
        (0.5, 0.77, 1.0, 1.31, 1.5),
    ),
    "saturation": (
        lambda pixels, factor: adjust_colors(pixels, factor, None),
        F.adjust_saturation,
        (0.5, 0.77, 1.0, 1.31, 1.5),
    ),
    "hue": (
        lambda pixels, shift: adjust_colors(pixels, None, shift),
        F.adjust_hue,
        (-1 / 16, -0.05, -0.031, -0.001, 0.0, 0.002, 0.017, 0.05, 1 / 16),
    ),
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


@pytest.mark.parametrize(("saturation", "hue", "name"), [(None, 0.2, "hue shift"), (1.6, None, "saturation factor")])
def test_an_amount_beyond_16_bit_integers_is_refused(saturation, hue, name) -> None:
    with pytest.raises(ValueError, match=name):
        adjust_colors(np.zeros((2, 2, 3), np.uint8), saturation, hue)


def by_torchvision(image: torch.Tensor, distortion: Distortion) -> torch.Tensor:
    """The operations one after the other, as in torchvision's RandomPhotometricDistort."""

    def contrast(image: torch.Tensor, here: bool) -> torch.Tensor:
        skipped = distortion.contrast is None or distortion.contrast_first is not here
        return image if skipped else F.adjust_contrast(image, distortion.contrast)

    if distortion.brightness is not None:
        image = F.adjust_brightness(image, distortion.brightness)
    image = contrast(image, True)
    if distortion.saturation is not None:
        image = F.adjust_saturation(image, distortion.saturation)
    if distortion.hue is not None:
        image = F.adjust_hue(image, distortion.hue)
    image = contrast(image, False)
    return image if distortion.channels is None else F.permute_channels(image, list(distortion.channels))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.3, 0.8, 1.0]))
def test_a_distortion_is_torchvisions_operations_in_torchvisions_order(seed, probability) -> None:
    generator = torch.Generator().manual_seed(seed)
    tint = torch.tensor([1.0, 0.7, 0.3])[torch.randperm(3, generator=generator)][:, None, None]
    image = (torch.randint(0, 256, (3, 24, 31), generator=generator) * tint).to(torch.uint8)
    distortion = draw_distortion(np.random.default_rng(seed), probability)
    before = image.clone()
    difference = (distortion(image).int() - by_torchvision(image, distortion).int()).abs().float()
    # One level each; contrast and saturation may enlarge the earlier ones by half.
    assert difference.max() <= 5 and difference.mean() < 1
    assert torch.equal(image, before)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.3, 0.8, 1.0]), st.booleans())
def test_a_distorted_part_is_the_part_of_the_distorted_image(seed, probability, channels_last) -> None:
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.integers(0, 256, (3, 21, 19), dtype=np.uint8))
    if channels_last:
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    distortion = draw_distortion(rng, probability)
    (top, bottom), (left, right) = np.sort(rng.integers(0, 22, 2)), np.sort(rng.integers(0, 20, 2))
    part = distortion(image, slice(top, bottom), slice(left, right))
    assert torch.equal(part, distortion(image)[:, top:bottom, left:right])


@pytest.mark.parametrize("shape", [(1, 1), (255, 3), (256, 3), (600, 5)])
def test_the_mean_gray_of_white_is_nearly_255_however_many_rows(shape) -> None:
    assert mean_gray(np.full((*shape, 3), 255, np.uint8)) == pytest.approx(255 * 0.9999)
    values = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert mean_gray(values) == pytest.approx(values.reshape(-1, 3).mean(axis=0) @ [0.2989, 0.587, 0.114])


def test_distorted_images_are_distributed_as_those_of_torchvision() -> None:
    from scipy.stats import ks_2samp
    from torchvision.transforms import v2

    torch.manual_seed(0)
    rng, reference = np.random.default_rng(0), v2.RandomPhotometricDistort(p=0.8)
    low = torch.tensor([40, 90, 10])[:, None, None]
    image = (low + torch.randint(0, 100, (3, 12, 12))).to(torch.uint8)

    def properties(distorted: torch.Tensor) -> list[float]:
        values = distorted.float()
        return [*values.mean(dim=(1, 2)).tolist(), values.std().item(), (values.amax(0) - values.amin(0)).mean().item()]

    ours = np.array([properties(draw_distortion(rng, 0.8)(image)) for _ in range(1000)])
    expected = np.array([properties(reference(image)) for _ in range(400)])
    for number, name in enumerate(["red", "green", "blue", "deviation", "chroma"]):
        # Kolmogorov-Smirnov: the distance exceeds 0.115 by chance in less than one of a thousand cases.
        assert ks_2samp(ours[:, number], expected[:, number]).statistic < 0.115, name


def test_without_probability_nothing_changes_and_with_it_each_part_is_independent() -> None:
    rng = np.random.default_rng(0)
    image = every_color(51)
    assert all(torch.equal(draw_distortion(rng, 0.0)(image), image) for _ in range(20))
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
