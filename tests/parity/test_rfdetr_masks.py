"""Our segmentation head against Roboflow's package (rfdetr 1.11) with the same random weights: masks, losses, names.

Masks are compared at random points, which are the same in both implementations.
"""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.catalog import RFDETR_VARIANTS
from rtdetr_tool.families.rfdetr.names import from_rfdetr, to_rfdetr
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.losses.masks import TrueMasks, factors_of
from rtdetr_tool.spec import ModelSpec
from tests.parity.rfdetr_pair import build_pair, normalized, show_variant
from tests.parity.test_rfdetr import FEW, TOLERANCE, check_losses, make_targets, random_images, worst

VARIANTS = [name for name, row in RFDETR_VARIANTS.items() if row.segmentation_head]


@pytest.fixture
def same_draws(monkeypatch):
    """Patch `torch.rand` to return the same points for every mask, so that the order of draws does not matter."""
    real = torch.rand

    def draw(*size, **options):
        if len(size) != 3 or size[-1] != 2:
            return real(*size, **options)
        generator = torch.Generator().manual_seed(size[1])
        points = real(1, size[1], 2, generator=generator).to(options.get("device"))
        return points.expand(size[0], -1, -1).clone()

    monkeypatch.setattr(torch, "rand", draw)


def with_masks(targets, height, width):
    """Targets with ellipses that fill the boxes."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    for target in targets:
        cx, cy, w, h = target.boxes[:, :, None, None].unbind(1)
        target.masks = ((x - cx) / w) ** 2 + ((y - cy) / h) ** 2 < 0.25
    return targets


def build_segmenting_pair(variant, **changes):
    """A pair with mask logits of a few units, as after training; with random weights they exceed 100."""
    reference, ours = build_pair(variant, **changes)
    with torch.no_grad():
        for tensor in reference.segmentation_head.query_features_proj.parameters():
            tensor.mul_(0.05)
    ours.load_state_dict(from_rfdetr(reference.state_dict()))
    return reference, ours


def check_masks(theirs, ours, images) -> float:
    with torch.no_grad():
        expected, actual = theirs.eval()(normalized(images)), ours.eval()(images)
        differences = [worst([(actual.masks, expected["pred_masks"])])]
        deployed = ours.deploy()(images)
        differences.append(worst([(deployed.masks, expected["pred_masks"])]))
        expected, actual = theirs.train()(normalized(images)), ours.train()(images)
    stages = [*expected["aux_outputs"], expected]
    for factors, parts in ((actual.layer_masks, stages), (actual.encoder_masks, [expected["enc_outputs"]])):
        assert len(factors.features) == len(parts)
        for number, part in enumerate(parts):
            part = part["pred_masks"]
            found_here = (factors.features[number], factors.queries[number], factors.bias)
            requested = (part[name] for name in ("spatial_features", "query_features", "bias"))
            differences.append(worst(zip(found_here, requested, strict=True)))
    print(f"largest difference of masks: {max(differences):.1e}")
    return max(differences)


@pytest.mark.parametrize(("variant", "size"), [("seg_nano", (48, 96)), ("seg_medium", (72, 48))])
def test_masks_of_every_layer_are_equal(variant, size):
    reference, ours = build_segmenting_pair(variant, **FEW)
    assert check_masks(reference, ours, random_images(*size)) < TOLERANCE


@pytest.mark.parametrize("counts", [(4, 0, 1), (0, 0)])
def test_losses_and_gradients_with_masks_are_equal(counts, same_draws):
    reference, ours = build_segmenting_pair("seg_nano", **FEW)
    images = random_images(60, 96, len(counts))
    targets = with_masks(make_targets(*counts), 60, 96)
    assert check_losses(reference, ours, "seg_nano", images, targets, **FEW) < TOLERANCE


def test_names_of_a_segmentation_model_convert_in_both_directions():
    reference, ours = build_pair("seg_preview", **FEW)
    state = reference.state_dict()
    own = from_rfdetr(state)
    assert set(own) == set(ours.state_dict())
    back = to_rfdetr(own)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_masks_that_are_multiplied_out_have_the_same_loss_as_their_factors(same_draws):
    _, ours = build_segmenting_pair("seg_nano", **FEW)
    with torch.no_grad():
        result = ours.train()(random_images(60, 96)).layer_masks
    targets = with_masks(make_targets(2, 3), 60, 96)
    criterion = build_criterion(ModelSpec(arch="rfdetr", rfdetr=RfdetrSpec(variant="seg_nano", **FEW)))
    truth = TrueMasks.of(targets)
    last = type(result)(result.features[-1:], result.queries[-1:], result.bias)
    dense = (last.queries[0] @ last.features[0].flatten(2)).unflatten(-1, last.features.shape[-2:]) + last.bias
    costs = criterion.head_loss.costs([last, factors_of(dense)], truth)
    assert worst([(costs[0], costs[1])]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_published_segmentation_variant_is_equal(variant, same_draws):
    row = RFDETR_VARIANTS[variant]
    reference, ours = build_segmenting_pair(variant)
    # With other images, rounding may decide which of two points of a mask is more uncertain (as with seed 384).
    images = random_images(row.resolution, row.resolution, 1, seed=1).double()
    targets = with_masks(make_targets(5), row.resolution, row.resolution)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in reference.parameters()) == row.parameters
    reference, ours = (
        reference.double(),
        ours.double(),
    )  # otherwise rounding would swap some of the proposals with similar scores
    output = check_masks(reference, ours, images)
    loss = check_losses(reference, ours, variant, images, targets)
    show_variant(variant, reference, ours, output, loss)
    assert max(output, loss) < TOLERANCE
