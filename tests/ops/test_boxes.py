from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from rtdetr_tool.ops.boxes import (
    box_area,
    box_iou,
    cxcywh_generalized_iou,
    cxcywh_ious,
    cxcywh_to_xyxy,
    inverse_sigmoid,
    pairwise_box_iou,
    pairwise_cxcywh_generalized_iou,
    xyxy_to_cxcywh,
)


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator)
    return torch.cat([low, low + torch.rand(count, 2, generator=generator) * 0.5 + 0.01], dim=1)


def test_formats_convert_there_and_back():
    assert cxcywh_to_xyxy(torch.tensor([5.0, 10.0, 4.0, 6.0])).tolist() == [3, 7, 7, 13]
    assert xyxy_to_cxcywh(torch.tensor([3.0, 7.0, 7.0, 13.0])).tolist() == [5, 10, 4, 6]
    boxes = random_boxes(20, 0).view(4, 5, 4)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)


def test_iou_and_generalized_iou_of_two_squares_by_hand():
    a, b = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([1.0, 1.0, 3.0, 3.0])
    assert box_iou(a, b).item() == pytest.approx(1 / 7)
    assert cxcywh_generalized_iou(*xyxy_to_cxcywh(torch.stack([a, b]))).item() == pytest.approx(1 / 7 - 2 / 9)  # hull 9
    far = torch.tensor([4.0, 0.0, 6.0, 2.0])
    assert box_iou(a, far).item() == 0
    assert cxcywh_generalized_iou(*xyxy_to_cxcywh(torch.stack([a, far]))).item() == pytest.approx(-4 / 12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9))
def test_pairwise_values_equal_torchvision(seed, n, m):
    a, b = random_boxes(n, seed), random_boxes(m, seed + 1)
    torch.testing.assert_close(pairwise_box_iou(a, b), torchvision.ops.box_iou(a, b))
    centers = xyxy_to_cxcywh(a), xyxy_to_cxcywh(b)
    torch.testing.assert_close(
        pairwise_cxcywh_generalized_iou(*centers), torchvision.ops.generalized_box_iou(a, b), atol=1e-6, rtol=1e-5
    )
    iou = cxcywh_ious(centers[0][:, None], centers[1])[0]
    torch.testing.assert_close(iou, torchvision.ops.box_iou(a, b), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(box_area(a), torchvision.ops.box_area(a))


def test_empty_boxes_give_finite_values_and_gradients():
    boxes = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.2, 0.2, 0.0, 0.3]], requires_grad=True)
    corners = cxcywh_to_xyxy(boxes)
    total = box_iou(corners, corners.detach()).sum() + cxcywh_generalized_iou(boxes, boxes.detach()).sum()
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(boxes.grad).all()


@pytest.mark.parametrize("offset", [0.0, 0.125])  # exact in binary, so that edges are at the same place
def test_edges_at_the_same_place_share_the_gradient_as_in_torchvision(offset):
    """The subgradient of a maximum of two equal numbers is half of each."""
    a = torch.tensor([[0.25, 0.25, 0.75, 0.75]], requires_grad=True)
    b = torch.tensor([[0.25, 0.25 + offset, 0.75, 0.75]])
    ours = torch.autograd.grad(cxcywh_generalized_iou(xyxy_to_cxcywh(a), xyxy_to_cxcywh(b)).sum(), a)[0]
    reference = torch.autograd.grad(torchvision.ops.generalized_box_iou(a, b).sum(), a)[0]
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)


def test_small_boxes_keep_their_precision():
    a = torch.tensor([[0.9, 0.9, 1e-3, 2e-3]])
    b = a + torch.tensor([[2e-4, -1e-4, 1e-4, 2e-4]])
    exact = [value.item() for value in cxcywh_ious(a.double(), b.double())]
    assert [value.item() for value in cxcywh_ious(a, b)] == pytest.approx(exact, rel=1e-4)


def test_the_gradient_of_generalized_iou_equals_torchvision():
    a, b = random_boxes(6, 3).requires_grad_(), random_boxes(6, 4)
    ours = torch.autograd.grad(cxcywh_generalized_iou(xyxy_to_cxcywh(a), xyxy_to_cxcywh(b)).sum(), a)[0]
    reference = torch.autograd.grad(torchvision.ops.generalized_box_iou(a, b).diagonal().sum(), a)[0]
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)


def test_inverse_sigmoid_undoes_sigmoid_and_stays_finite_at_the_ends():
    x = torch.linspace(-8, 8, 33)
    for with_gradient, tolerance in ((False, 1e-3), (True, 2e-3)):
        with torch.set_grad_enabled(with_gradient):
            torch.testing.assert_close(inverse_sigmoid(x.sigmoid()), x, atol=1e-3, rtol=1e-3)
            ends = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
        assert ends.tolist() == pytest.approx([-11.5129, -11.5129, 11.5129, 11.5129], abs=tolerance)


def test_inverse_sigmoid_gives_the_same_boxes_in_training():
    """The kernel of the training step rounds differently at the ends, far below the precision of a box."""
    x = torch.cat([torch.linspace(0, 1, 1001), torch.logspace(-7, -3, 50), 1 - torch.logspace(-7, -3, 50)])
    with torch.no_grad():
        expected = inverse_sigmoid(x)
    torch.testing.assert_close(inverse_sigmoid(x).sigmoid(), expected.sigmoid(), atol=1e-7, rtol=2e-5)
