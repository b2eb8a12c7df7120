"""Our RF-DETR against Roboflow's package (rfdetr 1.11) with the same random weights: outputs, losses, gradients, names.

XLarge and 2XLarge are built by the core of that package from their hyperparameters. By default, real variants run with
small images and few queries; the complete published variants are slow tests.
"""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.catalog import RFDETR_VARIANTS
from rtdetr_tool.families.rfdetr.names import from_rfdetr, has_rfdetr_names, to_rfdetr
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.ops.structures import Target
from rtdetr_tool.spec import ModelSpec
from tests.parity.rfdetr_pair import CLASSES, build_ours, build_pair, normalized, show_variant, their_criterion

TOLERANCE = 1e-4
# Those with masks and keypoints are compared in test_rfdetr_masks.py and test_rfdetr_keypoints.py.
BOX_VARIANTS = [
    name for name, row in RFDETR_VARIANTS.items() if not (row.segmentation_head or row.use_grouppose_keypoints)
]
FEW = {"num_queries": 20, "group_detr": 3}


def random_images(height: int, width: int, batch: int = 2, seed: int | None = None):
    generator = torch.Generator().manual_seed(height if seed is None else seed)
    return torch.rand(batch, 3, height, width, generator=generator)


def make_targets(*counts: int) -> list[Target]:
    generator, made = torch.Generator().manual_seed(4), []
    for index, count in enumerate(counts):
        center = torch.rand(count, 2, generator=generator) * 0.5 + 0.25
        size = torch.rand(count, 2, generator=generator) * 0.3 + 0.1
        labels = torch.randint(CLASSES + 1, (count,), generator=generator)
        made.append(Target(torch.cat([center, size], 1), labels, index, (64, 64), (64.0, 64.0)))
    return made


def worst(pairs) -> float:
    return max((a - b).abs().max().item() for a, b in pairs)


def check_outputs(theirs, ours, images) -> float:
    with torch.no_grad():
        expected, actual = theirs.eval()(normalized(images)), ours.eval()(images)
        differences = [worst([(actual.logits, expected["pred_logits"]), (actual.boxes, expected["pred_boxes"])])]
        expected, actual = theirs.train()(normalized(images)), ours.train()(images)
    stages = [*expected["aux_outputs"], expected]
    for number, stage in enumerate(stages):
        pairs = ((actual.layer_logits[number], stage["pred_logits"]), (actual.layer_boxes[number], stage["pred_boxes"]))
        differences.append(worst(pairs))
    selected = expected["enc_outputs"]
    differences.append(worst([(actual.encoder_logits, selected["pred_logits"])]))
    differences.append(worst([(actual.encoder_boxes, selected["pred_boxes"])]))
    assert len(stages) == len(actual.layer_logits)
    print(f"largest difference of outputs: {max(differences):.1e}")  # shown by pytest -rP
    return max(differences)


def check_losses(theirs, ours, variant, images, targets, **changes) -> float:
    """Compare every term and gradient; one side after the other, so that the largest variants fit into memory."""
    with_masks = targets[0].masks is not None
    precision = torch.float32 if with_masks else images.dtype  # the package's mask sampling supports no other
    labels = [{"labels": t.labels, "boxes": t.boxes.to(precision)} for t in targets]
    for label, target in zip(labels, targets, strict=True):
        label |= {"masks": target.masks} if with_masks else {}
        label |= {"keypoints": target.keypoints} if target.keypoints is not None else {}
    spec = ModelSpec(arch="rfdetr", rfdetr=RfdetrSpec(variant=variant, **changes))
    differences = []
    for training in (True, False):
        judge, criterion = their_criterion(variant, **changes).train(training), build_criterion(spec).train(training)
        outputs = theirs.train(training)(normalized(images))
        expected = judge(converted(outputs, precision), labels)
        expected = {name: weight * expected[name] for name, weight in judge.weight_dict.items() if name in expected}
        requested = gradients_of(theirs, sum(expected.values())) if training else {}
        expected = {name: loss.item() for name, loss in expected.items()}
        actual = criterion(ours.train(training)(images).to(precision), targets)
        if training:
            assert set(actual) == {*expected, "loss"}
            check_gradients(from_rfdetr(requested), gradients_of(ours, actual["loss"]))
        differences += [abs(loss.item() - expected[name]) for name, loss in actual.items() if name != "loss"]
    print(f"largest difference of losses: {max(differences):.1e}")
    return max(differences)


def converted(outputs, precision):
    if isinstance(outputs, dict):
        return {name: converted(value, precision) for name, value in outputs.items()}
    return [converted(value, precision) for value in outputs] if isinstance(outputs, list) else outputs.to(precision)


def gradients_of(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    result = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return result


def check_gradients(expected, found) -> None:
    assert set(found) == set(expected)
    for start in ("", "segmentation_head."):
        names = [name for name in found if name.startswith(start)]
        if names:
            largest = max(expected[name].abs().max() for name in names)
            assert worst((found[name], expected[name]) for name in names) <= TOLERANCE * largest  # 0 without objects


CASES = [
    pytest.param("nano", {}, (64, 128), id="nano"),
    pytest.param("base", {}, (56, 112), id="base"),
    pytest.param("nano", {"num_queries": 100, "group_detr": 1}, (96, 64), id="fewer tokens than queries"),
    pytest.param("nano", {"projector_scale": ["P3", "P4", "P5"]}, (64, 64), id="three levels"),
    pytest.param("nano", {"encoder": "dinov2_registers_windowed_small"}, (64, 96), id="registers"),
    pytest.param("nano", {"bbox_reparam": False}, (64, 96), id="boxes as logits"),
    pytest.param("nano", {"lite_refpoint_refine": False, "dec_layers": 3}, (64, 96), id="refined references"),
    pytest.param("xlarge", {"encoder": "dinov2_windowed_small"}, (100, 140), id="one window"),
]


@pytest.mark.parametrize(("variant", "changes", "size"), CASES)
def test_outputs_are_equal(variant, changes, size):
    reference, ours = build_pair(variant, **{**FEW, **changes})
    assert check_outputs(reference, ours, random_images(*size)) < TOLERANCE


def test_a_deployed_copy_is_equal_too():
    reference, ours = build_pair("nano", **FEW)
    images = random_images(64, 96)
    with torch.no_grad():
        expected, actual = reference.eval()(normalized(images)), ours.eval().deploy()(images)
    assert worst([(actual.logits, expected["pred_logits"]), (actual.boxes, expected["pred_boxes"])]) < TOLERANCE


@pytest.mark.parametrize("counts", [(4, 0, 1), (0, 0)])
def test_losses_and_gradients_are_equal(counts):
    reference, ours = build_pair("nano", **FEW)
    images = random_images(64, 96, len(counts))
    assert check_losses(reference, ours, "nano", images, make_targets(*counts), **FEW) < TOLERANCE


def test_losses_of_a_single_decoder_layer_are_equal():
    changes = {**FEW, "dec_layers": 1}
    reference, ours = build_pair("nano", **changes)
    assert check_losses(reference, ours, "nano", random_images(64, 96), make_targets(3, 2), **changes) < TOLERANCE


def test_the_names_convert_in_both_directions():
    reference, ours = build_pair("large_2025", encoder="dinov2_windowed_small", **FEW)
    state = reference.state_dict()
    own = from_rfdetr(state)
    assert has_rfdetr_names(state) and not has_rfdetr_names(own)
    assert set(own) == set(ours.state_dict())
    back = to_rfdetr(own)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.slow
@pytest.mark.parametrize("variant", BOX_VARIANTS)
def test_a_published_variant_is_equal_in_names_outputs_and_losses(variant):
    row = RFDETR_VARIANTS[variant]
    reference, ours = build_pair(variant)
    assert set(to_rfdetr(ours.state_dict())) == set(reference.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in reference.parameters()) == row.parameters
    # In float32, rounding would swap some of the 3900 proposals with similar scores.
    reference, ours = reference.double(), ours.double()
    images = random_images(row.resolution, row.resolution, 1).double()
    output = check_outputs(reference, ours, images)
    loss = check_losses(reference, ours, variant, images, make_targets(5))
    show_variant(variant, reference, ours, output, loss)
    assert max(output, loss) < TOLERANCE


def test_a_smaller_image_in_training_keeps_each_group_to_its_own_proposals():
    """The only difference: the package assigns the proposals of all groups to the queries of the first groups."""
    reference, ours = build_pair("nano", num_queries=20, group_detr=3)
    images = random_images(32, 32)  # 4 tokens
    with torch.no_grad():
        evaluated, trained = reference.eval()(normalized(images)), ours.train()(images)
    assert worst([(trained.logits[:, :20], evaluated["pred_logits"])]) < TOLERANCE
    assert build_ours("nano").decoder.groups == 13
