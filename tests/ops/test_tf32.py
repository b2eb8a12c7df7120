"""TF32 flags: what runs use, and that comparisons are exact."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rtdetr_tool.formats.verification import Reference
from rtdetr_tool.ops.structures import Predictions
from rtdetr_tool.ops.tf32 import exact_float32, set_tf32


def flags() -> tuple[bool, str]:
    return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()


@pytest.fixture(autouse=True)
def restored():
    convolutions, products = flags()
    yield
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)


@pytest.mark.parametrize(
    ("mode", "mixed", "expected"),
    [
        ("auto", False, (True, "highest")),
        ("auto", True, (True, "high")),
        ("on", False, (True, "high")),
        ("off", True, (False, "highest")),
    ],
)
def test_a_mode_sets_convolutions_and_products(mode, mixed, expected):
    set_tf32(mode, mixed)
    assert flags() == expected


def test_inside_a_comparison_there_is_no_tf32_and_afterwards_it_is_as_before():
    set_tf32("on", mixed_precision=False)
    with pytest.raises(ZeroDivisionError), exact_float32():
        assert flags() == (False, "highest")
        raise ZeroDivisionError
    assert flags() == (True, "high")


def test_the_reference_of_an_exported_file_is_computed_without_tf32():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> Predictions:
            seen.append(flags())
            return Predictions(images[:, :, 0], images[:, :, 0])

        def features(self, images: torch.Tensor) -> list[torch.Tensor]:
            seen.append(flags())
            return [images]

    seen: list[tuple[bool, str]] = []
    set_tf32("on", mixed_precision=False)
    images = torch.rand(1, 3, 4, 4)
    reference = Reference(Network(), images, "test", (1,))
    reference.predict(images)
    reference.features(images)
    assert seen == [(False, "highest")] * 2 and flags() == (True, "high")
