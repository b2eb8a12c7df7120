"""Our D-FINE against transformers' with the same weights: names and outputs, for each variant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers.models.d_fine import modeling_d_fine

from rtdetr_tool.checkpoints.detector_file import read_detector
from rtdetr_tool.families.dfine.build import build_detector
from rtdetr_tool.families.dfine.model.distribution import bin_offsets, edge_offsets, move_edges, nearest_bins
from rtdetr_tool.families.dfine.official import from_official
from rtdetr_tool.families.dfine.transformers_names import (
    from_transformers,
    is_transformers_dfine,
    to_transformers,
    to_transformers_file,
)
from rtdetr_tool.ops.boxes import cxcywh_to_xyxy
from rtdetr_tool.spec import spec_from_dict
from tests.parity.dfine_pair import EACH_VARIANT, build_pair, outputs
from tests.parity.fixtures.make_dfine_outputs import CLASSES, QUERIES, image, weights_of

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=EACH_VARIANT)
def pair(request, disturb):
    return build_pair(request.param, disturb)


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (128, 64)])
def test_logits_and_boxes_are_equal(pair, query_difference, size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(size[0]))
    difference = query_difference(*outputs(pair.eval(), images))
    print(f"largest difference of outputs: {difference:.1e}")  # shown by pytest -rP
    assert difference < TOLERANCE


def test_they_are_equal_in_double_precision(disturb, query_difference):
    pair = build_pair("n", disturb).eval().double()
    images = torch.rand(2, 3, 96, 160, generator=torch.Generator().manual_seed(1)).double()
    difference = query_difference(*outputs(pair, images))
    print(f"largest difference of outputs in double precision: {difference:.1e}")
    assert difference < TOLERANCE


def test_a_fused_copy_is_equal_too(pair, query_difference, images):
    pair.eval()
    with torch.no_grad():
        reference, ours = pair.reference(images), pair.ours.deploy()(images)
    assert query_difference((ours.logits, ours.boxes), (reference.logits, reference.pred_boxes)) < TOLERANCE


def test_the_rename_table_covers_every_tensor_in_both_directions(pair):
    reference = pair.reference.state_dict()
    ours = from_transformers(reference)
    assert is_transformers_dfine(reference) and not is_transformers_dfine(ours)
    assert set(ours) == set(pair.ours.state_dict())
    back = to_transformers(ours, *pair.constants())
    second_names = {name for name in reference if name.startswith(("class_embed.", "bbox_embed."))}
    assert set(back) == set(reference) - second_names
    assert all(torch.equal(back[name], reference[name]) for name in back)


def test_files_have_the_names_that_transformers_writes(disturb, tmp_path):
    from safetensors.torch import load_file

    pair = build_pair("n", disturb, dn_number=10)
    pair.reference.save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    ours = from_transformers(written)
    assert all(torch.equal(ours[name], tensor) for name, tensor in pair.ours.state_dict().items())
    back = to_transformers_file(ours, *pair.constants())
    assert set(back) == {name for name in written if not name.startswith(("class_embed.", "bbox_embed."))}


@pytest.mark.parametrize(("reg_max", "reg_scale"), [(32, 4.0), (32, 8.0), (16, 2.5)])
def test_offsets_of_bins_and_boxes_are_equal(reg_max, reg_scale):
    from transformers.loss.loss_d_fine import bbox2distance

    up, scale = torch.tensor([0.5]), torch.tensor([reg_scale])
    expected = modeling_d_fine.weighting_function(reg_max, up, scale)
    offsets = bin_offsets(reg_max, reg_scale)
    torch.testing.assert_close(offsets, expected, atol=1e-5, rtol=1e-5)

    generator = torch.Generator().manual_seed(2)
    reference = torch.rand(40, 4, generator=generator) * 0.5 + 0.1
    distance = torch.randn(40, 4, generator=generator)
    torch.testing.assert_close(
        move_edges(reference, distance, reg_scale), modeling_d_fine.distance2bbox(reference, distance, reg_scale)
    )
    target = cxcywh_to_xyxy(torch.rand(40, 4, generator=generator) * 0.5 + 0.1)
    left, share = nearest_bins(edge_offsets(reference, target, reg_scale), offsets)
    bins, right_weight, left_weight = bbox2distance(reference, target, reg_max, reg_scale, up)
    assert torch.equal(left.flatten(), bins.long())
    torch.testing.assert_close(share.flatten(), right_weight, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(1 - share.flatten(), left_weight, atol=1e-4, rtol=1e-4)


def test_moving_edges_by_their_offsets_gives_the_target():
    generator = torch.Generator().manual_seed(3)
    reference, target = (torch.rand(9, 4, generator=generator) * 0.5 + 0.1 for _ in range(2))
    moved = move_edges(reference, edge_offsets(reference, cxcywh_to_xyxy(target), 4.0), 4.0)
    torch.testing.assert_close(moved, target)


def test_the_official_network_has_the_same_outputs_on_an_image_that_is_not_square(tmp_path):
    fixture = json.loads((Path(__file__).parent / "fixtures" / "dfine_official_n.json").read_text(encoding="utf-8"))
    torch.save({"ema": {"module": weights_of(fixture["shapes"])}, "last_epoch": 3}, tmp_path / "official.pth")
    file = read_detector(tmp_path / "official.pth", {"dfine": {"num_queries": QUERIES}})
    assert file.what == "an official D-FINE checkpoint, averaged weights (EMA)"
    assert file.meta["spec"]["dataset"]["num_classes"] == CLASSES
    assert file.meta["spec"]["model"]["dfine"] == {"variant": "n", "num_queries": QUERIES}
    model = spec_from_dict({"model": file.meta["spec"]["model"]}).model
    ours = build_detector(model, CLASSES, False).eval()
    ours.load_state_dict(file.weights)
    with torch.no_grad():
        found = ours(image())
    logits, boxes = torch.tensor(fixture["pred_logits"]), torch.tensor(fixture["pred_boxes"])
    difference = max((found.logits.flatten(0, 1) - logits).abs().max(), (found.boxes.flatten(0, 1) - boxes).abs().max())
    print(f"largest difference from the official outputs: {difference:.1e}")
    assert difference < TOLERANCE
    assert logits.std() > 0.1 and boxes.std() > 0.05  # the outputs tell queries apart


def test_initial_weights_have_the_spread_of_the_official_ones():
    """A spread may differ by chance, the more the fewer values a tensor has."""
    fixture = json.loads((Path(__file__).parent / "fixtures" / "dfine_official_n.json").read_text(encoding="utf-8"))
    official = from_official({name: torch.tensor(values) for name, values in fixture["initial"].items()})
    model = spec_from_dict({"model": {"arch": "dfine", "dfine": {"variant": "n", "num_queries": QUERIES}}}).model
    torch.manual_seed(0)
    ours = dict(build_detector(model, CLASSES, False).named_parameters())
    assert ours.keys() == official.keys()
    for name, weight in ours.items():
        mean, spread = official[name].tolist()
        allowed = 6 * max(spread, weight.std(correction=0).item()) / weight.numel() ** 0.5 + 1e-5
        assert weight.mean().item() == pytest.approx(mean, abs=allowed), name
        assert weight.std(correction=0).item() == pytest.approx(spread, abs=allowed), name
