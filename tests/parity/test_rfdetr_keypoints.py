"""Our keypoint head against Roboflow's package (rfdetr 1.11) with the same random weights: outputs, losses, names."""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.catalog import RFDETR_VARIANTS
from rtdetr_tool.families.rfdetr.architecture import architecture_of_rfdetr
from rtdetr_tool.families.rfdetr.names import from_rfdetr, to_rfdetr
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.ops.structures import Target
from rtdetr_tool.spec import ModelSpec
from tests.parity.rfdetr_pair import CLASSES, build_pair, normalized, show_variant, their_criterion
from tests.parity.test_rfdetr import TOLERANCE, check_losses, check_outputs, random_images, worst

VARIANT = "keypoint_preview"
SMALL = {"num_queries": 20, "group_detr": 3, "dec_layers": 2, "hidden_dim": 64}
CASES = [
    pytest.param({}, id="as published"),
    pytest.param({"num_keypoints_per_class": [0, 5, 3]}, id="several classes"),
    pytest.param({"inter_instance_kp_attn": True, "keypoint_cross_attn": False}, id="other attention"),
    pytest.param({"grouppose_keypoint_dim_downscale": 2}, id="narrower keypoints"),
    pytest.param({"dual_projector": False, "dual_projector_kp_only": False}, id="one projector"),
    pytest.param({"dual_projector_kp_only": False}, id="second projector for objects too"),
]


def make_targets(counts: list[int], *objects: int) -> list[Target]:
    """Boxes of all classes with keypoints around them: labeled, hidden, not labeled, and objects without any."""
    generator, made = torch.Generator().manual_seed(4), []
    for index, count in enumerate(objects):
        center = torch.rand(count, 2, generator=generator) * 0.5 + 0.25
        size = torch.rand(count, 2, generator=generator) * 0.3 + 0.1
        labels = torch.randint(min(len(counts), CLASSES), (count,), generator=generator)
        places = center[:, None] + (torch.rand(count, max(counts), 2, generator=generator) - 0.5) * size[:, None]
        visible = torch.randint(3, (count, max(counts)), generator=generator)
        visible[::3] = 0
        exists = torch.arange(max(counts)) < torch.tensor(counts)[labels, None]
        points = torch.cat([places, visible[..., None].float()], -1) * exists[..., None]
        target = Target(torch.cat([center, size], 1), labels, index, (64, 64), (64.0, 64.0))
        target.keypoints = points * (points[..., 2:] > 0)
        made.append(target)
    return made


def check_keypoints(reference, ours, images) -> float:
    with torch.no_grad():
        expected, actual = reference.eval()(normalized(images)), ours.eval()(images)
        differences = [worst([(actual.keypoints.values, expected["pred_keypoints"])])]
        deployed = ours.deploy()(images)
        differences.append(worst([(deployed.keypoints.values, expected["pred_keypoints"])]))
        expected, actual = reference.train()(normalized(images)), ours.train()(images)
    stages = [*expected["aux_outputs"], expected]
    assert len(stages) == len(actual.layer_keypoints.values)
    for number, stage in enumerate(stages):
        differences.append(worst([(actual.layer_keypoints.values[number], stage["pred_keypoints"])]))
    proposed = expected["enc_outputs"]["pred_keypoints"]
    differences.append(worst([(actual.encoder_keypoints.values, proposed)]))
    print(f"largest difference of keypoints: {max(differences):.1e}")
    return max(differences)


@pytest.mark.parametrize("changes", CASES)
def test_outputs_of_every_layer_and_names_are_equal(changes):
    reference, ours = build_pair(VARIANT, **SMALL, **changes)
    check_names(reference.state_dict(), ours.state_dict(), changes)
    images = random_images(48, 72)
    assert check_outputs(reference, ours, images) < TOLERANCE
    assert check_keypoints(reference, ours, images) < TOLERANCE


def check_names(state, own, changes) -> None:
    """Names convert in both directions, and the architecture follows from the tensors."""
    converted = from_rfdetr(state)
    assert set(converted) == set(own)
    back = to_rfdetr(converted)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)
    stated = {name: changes[name] for name in ("dual_projector_kp_only",) if name in changes}
    found = architecture_of_rfdetr(converted, stated)[0]["rfdetr"]
    assert found == {"variant": VARIANT, **SMALL, **changes}


@pytest.mark.parametrize("objects", [(4, 0, 1), (0, 0)])
@pytest.mark.parametrize("counts", [[17], [0, 5, 3]])
def test_losses_and_gradients_are_equal(counts, objects):
    changes = {**SMALL, "num_keypoints_per_class": counts}
    reference, ours = build_pair(VARIANT, **changes)
    images = random_images(48, 72, len(objects))
    assert check_losses(reference, ours, VARIANT, images, make_targets(counts, *objects), **changes) < TOLERANCE


def test_weights_after_an_optimizer_step_are_equal():
    reference, ours = (model.double().train() for model in build_pair(VARIANT, **SMALL))
    images, targets = random_images(48, 72).double(), make_targets([17], 3, 2)
    for target in targets:
        target.boxes, target.keypoints = target.boxes.double(), target.keypoints.double()
    labels = [{name: getattr(target, name) for name in ("labels", "boxes", "keypoints")} for target in targets]
    judge = their_criterion(VARIANT, **SMALL).train()
    expected = judge(reference(normalized(images)), labels)
    spec = ModelSpec(arch="rfdetr", rfdetr=RfdetrSpec(variant=VARIANT, **SMALL))
    total = sum(weight * expected[name] for name, weight in judge.weight_dict.items() if name in expected)
    for model, loss in (
        (reference, total), (ours, build_criterion(spec).train()(ours(images), targets)["loss"])
    ):  # fmt: skip
        loss.backward()
        torch.optim.SGD(model.parameters(), 1e-3).step()
    moved, own = from_rfdetr(reference.state_dict()), ours.state_dict()
    assert worst((own[name], moved[name]) for name in own if own[name].is_floating_point()) < 1e-5


@pytest.mark.slow
def test_the_published_variant_is_equal():
    row = RFDETR_VARIANTS[VARIANT]
    reference, ours = build_pair(VARIANT)
    images = random_images(row.resolution, row.resolution, 1, seed=1).double()
    targets = make_targets([17], 5)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in reference.parameters()) == row.parameters
    reference, ours = reference.double(), ours.double()  # as for the other variants
    output = max(check_outputs(reference, ours, images), check_keypoints(reference, ours, images))
    loss = check_losses(reference, ours, VARIANT, images, targets)
    show_variant(VARIANT, reference, ours, output, loss)
    assert max(output, loss) < TOLERANCE
