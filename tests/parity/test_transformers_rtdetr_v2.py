"""Our decoder with RT-DETRv2's sampling against transformers' RTDetrV2 with the same weights.

transformers has one number of points for all levels; the test sets the list that its attention uses.
"""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.families.rtdetr.transformers_names import from_transformers

TOLERANCE = 1e-4

SAMPLINGS = {
    "two points": {"points": (2, 2, 2)},
    "points per level": {"points": (2, 4, 6)},
    "no point but one": {"points": (1, 1, 1)},
    "other reach": {"points": (3, 3, 3), "offset_scale": 1.25},
    "discrete": {"method": "discrete"},
    "discrete, points per level": {"method": "discrete", "points": (6, 1, 2), "offset_scale": 2.0},
    "narrow decoder": {"decoder_width": 16, "points": (1, 3, 2)},
}


@pytest.fixture(scope="module", params=list(SAMPLINGS))
def pair(request, build_pair):
    return build_pair("basic", version=2, frozen=False, num_denoising=8, **SAMPLINGS[request.param])


@pytest.mark.parametrize("size", [(64, 64), (128, 128)])
def test_logits_and_boxes_are_equal(pair, query_difference, size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(size[0]))
    pair.eval()
    with torch.no_grad():
        reference, ours = pair.theirs(images), pair.ours(images)
        fused = pair.ours.deploy()(images)
    for result in (ours, fused):
        difference = query_difference((result.logits, result.boxes), (reference.logits, reference.pred_boxes))
        assert difference < TOLERANCE
    print(f"largest difference of outputs: {difference:.1e}")


def test_the_sampling_matters(build_pair, images):
    """The cases above would not test anything if all results were equal."""
    outputs = []
    for case in ({}, {"points": (2, 4, 6)}, {"offset_scale": 1.25}, {"method": "discrete"}):
        pair = build_pair("basic", version=2, **case).eval()
        with torch.no_grad():
            outputs.append(pair.ours(images).boxes)
    for index, one in enumerate(outputs):
        for other in outputs[:index]:
            assert (one - other).abs().max() > 10 * TOLERANCE


@pytest.mark.parametrize("case", ["points per level", "discrete"])
def test_losses_and_gradients_are_equal(build_pair, criterion, images, targets, as_labels, losses_of_theirs, case):
    pair = build_pair("basic", version=2, frozen=False, num_denoising=12, decoder_layers=2, **SAMPLINGS[case]).train()
    torch.manual_seed(3)
    loss_of_theirs, terms_of_theirs = losses_of_theirs(pair.theirs, images, as_labels(targets))
    torch.manual_seed(3)
    ours = criterion(pair.ours(images, targets), targets)
    terms = {name: loss for name, loss in ours.items() if name != "loss"}
    assert set(terms) == set(terms_of_theirs)
    worst = max(abs(loss.item() - terms_of_theirs[name].item()) for name, loss in terms.items())
    print(f"largest difference of loss terms: {worst:.1e}")
    assert worst < TOLERANCE

    loss_of_theirs.backward()
    ours["loss"].backward()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in pair.theirs.named_parameters()}
    expected = from_transformers(gradients)
    apart, seen = 0.0, 0
    for name, parameter in pair.ours.named_parameters():
        if "sampling_offsets" in name and case == "discrete":
            assert not parameter.requires_grad and expected[name].abs().max() == 0
            continue
        largest = expected[name].abs().max().item()
        difference = (parameter.grad - expected[name]).abs().max().item()
        assert difference < 1e-4 + 1e-4 * largest, name
        apart, seen = max(apart, difference / (1 + largest)), seen + (largest > 1e-5)
    print(f"largest difference of gradients: {apart:.1e}")
    assert seen > 0.6 * len(expected)
