from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rtdetr_tool.families.rfdetr.loss import GroupMatcher, RFDETRCriterion, iou_aware_bce
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.losses import assignment
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.losses.matcher import Matches, PaddedTargets
from rtdetr_tool.losses.rows import Rows
from rtdetr_tool.ops.structures import Predictions, Target, TrainingPredictions
from rtdetr_tool.spec import ModelSpec

GROUPS, QUERIES = 3, 4
WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}


def target(boxes, labels) -> Target:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Target(boxes, torch.tensor(labels, dtype=torch.long), 0, (64, 64), (64.0, 64.0))


TARGETS = [target([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.2]], [0, 2]), target([], [])]


def criterion(**changes) -> RFDETRCriterion:
    return RFDETRCriterion(GroupMatcher(), WEIGHTS, **{"group_detr": GROUPS, **changes})


def random_predictions(layers=2, encoder_queries=QUERIES, classes=3) -> Predictions:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        logits = torch.randn(*shape, classes, generator=generator).requires_grad_()
        return logits, torch.rand(*shape, 4, generator=generator).requires_grad_()

    logits, boxes = draw(layers, 2, GROUPS * QUERIES)
    encoder_logits, encoder_boxes = draw(2, GROUPS * encoder_queries)
    return TrainingPredictions(
        logits[-1],
        boxes[-1],
        layer_logits=logits,
        layer_boxes=boxes,
        encoder_logits=encoder_logits,
        encoder_boxes=encoder_boxes,
    )


def test_one_query_and_one_object_by_hand():
    predictions = Predictions(torch.tensor([[[0.4, -0.3]]]), torch.tensor([[[0.6, 0.5, 0.2, 0.2]]]))
    losses = criterion()(predictions, [target([[0.5, 0.5, 0.2, 0.2]], [0])])
    iou = 1 / 3
    p, n = 1 / (1 + math.exp(-0.4)), 1 / (1 + math.exp(0.3))
    requested = p**0.25 * iou**0.75
    expected = -requested * math.log(p) - (1 - requested) * math.log(1 - p) - n**2 * math.log(1 - n)
    assert losses["loss_ce"].item() == pytest.approx(expected, rel=1e-5)
    assert losses["loss_bbox"].item() == pytest.approx(5 * 0.1, rel=1e-5)
    assert losses["loss_giou"].item() == pytest.approx(2 * (1 - iou), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(expected + 0.5 + 2 * (1 - iou), rel=1e-5)


def test_a_matched_class_has_a_target_of_at_least_a_hundredth():
    logits = torch.tensor([[[[-2.0]]]])
    index = tuple(torch.zeros(4, 1, dtype=torch.long))
    p = 1 / (1 + math.exp(2.0))
    absent, correction = iou_aware_bce(logits, index, torch.tensor([0.0]))
    assert (absent + correction).item() == pytest.approx(-0.01 * math.log(p) - 0.99 * math.log(1 - p), rel=1e-5)


def test_the_weight_of_an_unmatched_entry_passes_a_gradient_and_the_target_of_a_matched_one_none():
    logits = torch.tensor([[[[0.5, 1.0]]]], dtype=torch.float64, requires_grad=True)
    index = tuple(torch.zeros(4, 1, dtype=torch.long))
    absent, correction = iou_aware_bce(logits, index, torch.tensor([0.6], dtype=torch.float64))
    (absent.sum() + correction.sum()).backward()
    p, n = torch.tensor([0.5, 1.0], dtype=torch.float64).sigmoid().tolist()
    expected = p**0.25 * 0.6**0.75
    matched = p - expected  # of binary cross-entropy with a fixed target
    unmatched = 2 * n * n * (1 - n) * -math.log(1 - n) + n**3  # product rule of n^2 * -log(1 - n)
    assert logits.grad.flatten().tolist() == pytest.approx([matched, unmatched], rel=1e-9)


def test_every_group_matches_each_object_once_with_one_copy_to_the_host(monkeypatch):
    predictions = random_predictions()
    copies = []
    to_host = assignment._to_host
    monkeypatch.setattr(assignment, "_to_host", lambda parts: copies.append(len(parts)) or to_host(parts))
    stacks = [
        (predictions.layer_logits, predictions.layer_boxes),
        (predictions.encoder_logits[None], predictions.encoder_boxes[None]),
    ]
    matches = Matches(*GroupMatcher().match_rows(Rows.of(stacks), PaddedTargets.of(TARGETS), GROUPS))
    assert len(copies) == 1
    rows = torch.stack([matches.stage, matches.image, matches.query // QUERIES, matches.target], 1).tolist()
    assert sorted(rows) == [[s, 0, g, t] for s in range(3) for g in range(GROUPS) for t in range(2)]
    assert len(set(zip(matches.stage.tolist(), matches.query.tolist(), strict=True))) == len(rows)
    assert torch.equal(matches.row, matches.stage * GROUPS * QUERIES + matches.query)


def test_a_group_is_matched_as_if_it_were_alone():
    predictions, padded = random_predictions(), PaddedTargets.of(TARGETS)
    logits, boxes = predictions.layer_logits, predictions.layer_boxes
    together = Matches(*GroupMatcher().match_rows(Rows.of([(logits, boxes)]), padded, GROUPS))
    for group in range(GROUPS):
        part = slice(group * QUERIES, (group + 1) * QUERIES)
        alone = GroupMatcher()(logits[:, :, part], boxes[:, :, part], padded)
        mine = together.query // QUERIES == group
        assert torch.equal(together.query[mine] - group * QUERIES, alone.query)
        assert torch.equal(together.target[mine], alone.target)


def test_the_class_cost_tells_very_small_probabilities_apart():
    cost = GroupMatcher().class_term(torch.tensor([-30.0, -60.0]))
    assert cost.tolist() == pytest.approx([0.25 * 30, 0.25 * 60], rel=1e-5)


def test_terms_have_the_names_of_the_package_and_are_per_object_and_group():
    losses = criterion().train()(random_predictions(layers=3), TARGETS)
    ends = ("_0", "_1", "", "_enc")
    assert set(losses) == {"loss", *(f"{name}{end}" for name in WEIGHTS for end in ends)}
    total = sum(value for name, value in losses.items() if name != "loss")
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-6)
    single = criterion(group_detr=1).train()(random_predictions(layers=3), TARGETS)
    assert losses["loss_bbox"].item() != pytest.approx(single["loss_bbox"].item(), rel=1e-3)


def test_an_encoder_that_selects_less_queries_is_scored_too():
    losses = criterion().train()(random_predictions(encoder_queries=2), TARGETS)
    assert np.isfinite([value.item() for value in losses.values()]).all() and losses["loss_bbox_enc"] > 0


@pytest.mark.parametrize("aux_loss", [True, False])
def test_every_output_has_a_gradient_with_and_without_objects(aux_loss):
    nothing = [target([], []), target([], [])]
    for targets in (TARGETS, nothing):
        predictions = random_predictions()
        losses = criterion(aux_loss=aux_loss).train()(predictions, targets)
        losses["loss"].backward()
        leaves = (predictions.layer_logits, predictions.layer_boxes, predictions.encoder_logits,
                  predictions.encoder_boxes)  # fmt: skip
        assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)
        assert ("loss_ce_enc" in losses) == aux_loss


def test_without_objects_the_losses_are_divided_by_one():
    predictions = random_predictions()
    losses = criterion().train()(predictions, [target([], []), target([], [])])
    x = predictions.logits.detach()
    assert losses["loss_ce"].item() == pytest.approx((x.sigmoid() ** 2 * torch.log1p(x.exp())).sum().item(), rel=1e-5)


def test_the_spec_reaches_the_criterion():
    own = RfdetrSpec(cls_loss_coef=3.0, focal_alpha=0.5, group_detr=5)
    built = build_criterion(ModelSpec(arch="rfdetr", rfdetr=own, class_cost=7.0, bbox_loss_coef=4.0, aux_loss=False))
    assert isinstance(built, RFDETRCriterion)
    assert built.weights == {"loss_ce": 3.0, "loss_bbox": 4.0, "loss_giou": 2.0}
    assert (built.alpha, built.group_detr, built.aux_loss) == (0.5, 5, False)
    assert (built.matcher.class_cost, built.matcher.alpha) == (7.0, 0.5)
