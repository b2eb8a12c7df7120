"""D-FINE's losses: against the official code (numbers in fixtures), against transformers' terms, and one AdamW step.

transformers has the terms, but neither the union of the matchings nor the loss of the first box, and it pairs the
logits of one layer with the distributions of the next. The composition of the official code is therefore repeated here
from transformers' terms, and the official code itself is compared with by numbers.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.loss.loss_d_fine import DFineLoss

from rtdetr_tool.families.dfine.loss import DFINECriterion
from rtdetr_tool.families.dfine.model.predictions import DFINEDenoising, DFINEPredictions
from rtdetr_tool.families.dfine.transformers_names import from_transformers
from rtdetr_tool.losses.matcher import HungarianMatcher
from rtdetr_tool.ops.structures import Target
from tests.parity.dfine_pair import EACH_VARIANT, build_pair

TOLERANCE = 1e-4
WEIGHTS = {"loss_vfl": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0, "loss_fgl": 0.15, "loss_ddf": 1.5}
BINS = 8


@pytest.fixture(scope="module")
def fixture():
    content = json.loads((Path(__file__).parent / "fixtures" / "dfine_criterion.json").read_text(encoding="utf-8"))
    tensors = {name: torch.tensor(v).view(content["shapes"][name]) for name, v in content["tensors"].items()}
    return tensors, content["losses"]


def predictions_of(tensors: dict[str, Tensor], targets: list[Target]) -> DFINEPredictions:
    most, groups = 3, 2
    index = [torch.cat([g * 2 * most + torch.arange(len(t.labels)) for g in range(groups)]) for t in targets]
    denoising = DFINEDenoising(
        positive_index=index,
        object_index=[torch.arange(len(t.labels)).repeat(groups) for t in targets],
        groups=groups,
        **{n: tensors[f"dn_{n}"] for n in ("logits", "boxes", "corners", "references", "first_logits", "first_boxes")},
    )
    return DFINEPredictions(
        tensors["logits"][-1],
        tensors["boxes"][-1],
        layer_logits=tensors["logits"],
        layer_boxes=tensors["boxes"],
        encoder_logits=tensors["encoder_logits"],
        encoder_boxes=tensors["encoder_boxes"],
        layer_corners=tensors["corners"],
        references=tensors["references"],
        first_logits=tensors["first_logits"],
        first_boxes=tensors["first_boxes"],
        denoising=denoising,
    )


def targets_of(tensors: dict[str, Tensor]) -> list[Target]:
    return [
        Target(tensors[f"target_boxes_{i}"], tensors[f"target_labels_{i}"], i, (64, 64), (64.0, 64.0)) for i in range(2)
    ]


def test_every_loss_is_that_of_the_official_code(fixture):
    tensors, expected = fixture
    targets = targets_of(tensors)
    losses = DFINECriterion(HungarianMatcher(), WEIGHTS, reg_max=BINS)(predictions_of(tensors, targets), targets)
    total = losses.pop("loss")
    assert expected["loss_ddf_dn_2"] == 0.0  # of the last layer with itself
    assert set(losses) == set(expected) - {"loss_ddf_dn_2"}
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name], abs=TOLERANCE), name
    print(f"largest difference of loss terms: {max(abs(v.item() - expected[n]) for n, v in losses.items()):.1e}")
    assert total.item() == pytest.approx(sum(expected.values()), abs=1e-3)


def test_without_auxiliary_losses_only_the_last_layer_is_supervised(fixture):
    tensors, expected = fixture
    targets = targets_of(tensors)
    criterion = DFINECriterion(HungarianMatcher(), WEIGHTS, reg_max=BINS, aux_loss=False)
    losses = criterion(predictions_of(tensors, targets), targets)
    dn = {f"loss_{term}_dn_2" for term in ("vfl", "bbox", "giou", "fgl")}
    assert set(losses) == {"loss", "loss_vfl", "loss_bbox", "loss_giou", "loss_fgl", *dn}
    for name in ("loss_vfl", *dn):  # boxes of the last layer have another matching than with auxiliary losses
        assert losses[name].item() == pytest.approx(expected[name], abs=TOLERANCE)


def test_a_batch_without_objects_has_finite_losses_and_gradients(disturb):
    pair = build_pair("n", disturb, dn_number=10).train()
    empty = [Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), i, (64, 64), (64.0, 64.0)) for i in range(2)]
    losses = pair.criterion(pair.ours(torch.rand(2, 3, 64, 64), empty), empty)
    losses["loss"].backward()
    assert losses["loss_bbox"] == losses["loss_fgl"] == 0 and losses["loss_vfl"] > 0
    gradients = {name: p.grad for name, p in pair.ours.named_parameters() if p.requires_grad}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)


def union(stages: list[list[tuple[Tensor, Tensor]]]) -> list[tuple[Tensor, Tensor]]:
    """For each image, the most frequent object of each query that any stage matches."""
    result = []
    for image in zip(*stages, strict=True):
        votes = Counter((int(q), int(o)) for queries, objects in image for q, o in zip(queries, objects, strict=True))
        chosen: dict[int, int] = {}
        for (query, target), _ in sorted(votes.items(), key=lambda item: (-item[1], item[0])):
            chosen.setdefault(query, target)
        result.append(
            (torch.tensor(list(chosen), dtype=torch.long), torch.tensor(list(chosen.values()), dtype=torch.long))
        )
    return result


def reference_losses(model, images, labels) -> dict[str, Tensor]:
    """The official composition of transformers' terms."""
    criterion = DFineLoss(model.config)
    out = model.model(images, labels=labels)
    meta = out.denoising_meta_values
    skip = meta["dn_num_split"][0] if meta else 0
    logits, boxes = out.intermediate_logits, out.intermediate_reference_points  # the first box, then the layers
    corners, references = out.intermediate_predicted_corners, out.initial_reference_points
    layers = corners.shape[1]

    def stage(index: int, start: int, end: int | None) -> dict[str, Tensor]:
        first = {"logits": logits[:, index, start:end], "pred_boxes": boxes[:, index, start:end]}
        if index == 0:
            return first
        return {
            **first,
            "pred_corners": corners[:, index - 1, start:end],
            "ref_points": references[:, index - 1, start:end].float(),
            "teacher_corners": corners[:, -1, start:end],
            "teacher_logits": logits[:, -1, start:end],
        }

    stages = {f"_aux_{i}": stage(i + 1, skip, None) for i in range(layers - 1)}
    stages |= {"": stage(layers, skip, None), "_pre": stage(0, skip, None)}
    stages["_enc_0"] = {"logits": out.enc_topk_logits, "pred_boxes": out.enc_topk_bboxes}
    matches = {name: criterion.matcher(outputs, labels) for name, outputs in stages.items()}
    together = union(list(matches.values()))
    objects, pairs = sum(len(t["boxes"]) for t in labels), sum(len(q) for q, _ in together)
    single = [{**target, "boxes": target["boxes"].float()} for target in labels]  # its search for bins is in float32
    losses: dict[str, Tensor] = {}

    def add(name: str, outputs: dict[str, Tensor], own, shared, count: int, shared_count: int) -> None:
        terms = criterion.loss_labels_vfl(outputs, labels, own, count)
        terms |= criterion.loss_boxes(outputs, labels, shared, shared_count)
        terms |= criterion.loss_local(outputs, single, shared, shared_count)
        losses.update({f"{term}{name}": value * criterion.weight_dict[term] for term, value in terms.items()})

    for name, outputs in stages.items():
        add(name, outputs, matches[name], together, objects, pairs)
    if meta:
        own = criterion.get_cdn_matched_indices(meta, labels)
        for name, outputs in [
            *((f"_dn_{i}", stage(i + 1, 0, skip)) for i in range(layers)),
            ("_dn_pre", stage(0, 0, skip)),
        ]:
            add(name, outputs, own, own, objects * meta["dn_num_group"], objects * meta["dn_num_group"])
    return {name: value for name, value in losses.items() if name not in ("loss_ddf", f"loss_ddf_dn_{layers - 1}")}


@pytest.mark.parametrize("variant", EACH_VARIANT)
@pytest.mark.parametrize("dn_number", [0, 12])
def test_losses_and_one_optimizer_step_are_equal(disturb, images, targets, as_labels, variant, dn_number):
    # denoising queries follow the balance of the others (official code), in transformers their own
    fields = {"ddf_loss_coef": 0.0} if dn_number else {}
    # double precision, because batch norms over few pixels amplify rounding
    pair = build_pair(variant, disturb, frozen=True, dn_number=dn_number, **fields).train().double()
    images, noisy = images.double(), targets  # noise is drawn in float32
    targets = [replace(target, boxes=target.boxes.double()) for target in targets]
    torch.manual_seed(3)
    expected = reference_losses(pair.reference, images, as_labels(targets))
    torch.manual_seed(3)
    losses = pair.criterion.double()(pair.ours(images, noisy), targets)
    total = losses.pop("loss")
    assert set(losses) == set(expected)
    worst = max(abs(loss.item() - expected[name].item()) for name, loss in losses.items())
    print(f"{variant}: largest difference of loss terms: {worst:.1e}")
    assert worst < TOLERANCE

    before = {name: tensor.clone() for name, tensor in pair.ours.state_dict().items()}
    for model, loss in ((pair.reference, sum(expected.values())), (pair.ours, total)):
        # eps above rounding noise: Adam would blow up gradients that are zero but for rounding, as of key biases
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=1e-4, eps=1e-4
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    after, apart, moved = pair.ours.state_dict(), 0.0, 0
    for name, tensor in from_transformers(pair.reference.state_dict()).items():
        apart = max(apart, float((after[name] - tensor).abs().max()))
        moved += bool((after[name] - before[name]).abs().max() > 1e-5)
    print(f"{variant}: largest difference of weights after a step: {apart:.1e}")
    assert apart < 1e-5
    assert moved > 0.6 * len(list(pair.ours.parameters()))
