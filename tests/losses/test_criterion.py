from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.losses.criterion import SetCriterion
from rtdetr_tool.losses.functional import varifocal_loss
from rtdetr_tool.losses.matcher import HungarianMatcher
from rtdetr_tool.ops.boxes import cxcywh_generalized_iou
from rtdetr_tool.ops.structures import DenoisingPredictions, Predictions, Target, TrainingPredictions
from rtdetr_tool.spec.model import ModelSpec

WEIGHTS = {"loss_vfl": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}


def target(boxes, labels) -> Target:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Target(boxes, torch.tensor(labels, dtype=torch.long), 0, (64, 64), (64.0, 64.0))


TARGETS = [target([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.2]], [0, 2]), target([], [])]


def random_predictions(layers=3, queries=5, classes=3, groups=2, seed=0) -> Predictions:
    """Leaf tensors for every output, with denoising queries for TARGETS."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    def boxes(*shape):
        return torch.rand(*shape, 4, generator=generator).requires_grad_()

    layer_logits, layer_boxes = draw(layers, 2, queries, classes), boxes(layers, 2, queries)
    size = 4 * groups  # two objects, positive and negative
    positive = [torch.tensor([4 * g + i for g in range(groups) for i in range(2)]), torch.zeros(0, dtype=torch.long)]
    objects = [torch.arange(2).repeat(groups), torch.zeros(0, dtype=torch.long)]
    noisy = DenoisingPredictions(draw(layers, 2, size, classes), boxes(layers, 2, size), positive, objects, groups)
    encoder_logits, encoder_boxes = draw(2, queries, classes), boxes(2, queries)
    return TrainingPredictions(
        layer_logits[-1],
        layer_boxes[-1],
        layer_logits=layer_logits,
        layer_boxes=layer_boxes,
        encoder_logits=encoder_logits,
        encoder_boxes=encoder_boxes,
        denoising=noisy,
    )


def criterion(**changes) -> SetCriterion:
    return SetCriterion(HungarianMatcher(), WEIGHTS, **changes)


def test_one_query_and_one_object_by_hand():
    predictions = Predictions(torch.tensor([[[0.4, -0.3]]]), torch.tensor([[[0.6, 0.5, 0.2, 0.2]]]))
    losses = criterion()(predictions, [target([[0.5, 0.5, 0.2, 0.2]], [0])])
    iou = 1 / 3
    p, n = 1 / (1 + math.exp(-0.4)), 1 / (1 + math.exp(0.3))
    vfl = -iou * (iou * math.log(p) + (1 - iou) * math.log(1 - p)) - 0.75 * n**2 * math.log(1 - n)
    assert losses["loss_vfl"].item() == pytest.approx(vfl, rel=1e-5)
    assert losses["loss_bbox"].item() == pytest.approx(5 * 0.1, rel=1e-5)
    assert losses["loss_giou"].item() == pytest.approx(2 * (1 - iou), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(vfl + 0.5 + 2 * (1 - iou), rel=1e-5)


def test_training_supervises_every_layer_the_encoder_and_the_denoising_queries():
    losses = criterion()(random_predictions(), TARGETS)
    suffixes = ["", "_aux_0", "_aux_1", "_aux_2", "_dn_0", "_dn_1", "_dn_2"]
    assert set(losses) == {"loss"} | {f"{kind}{suffix}" for kind in WEIGHTS for suffix in suffixes}
    terms = [loss for name, loss in losses.items() if name != "loss"]
    assert losses["loss"].item() == pytest.approx(sum(term.item() for term in terms), rel=1e-5)


def test_the_last_aux_term_is_the_encoders_and_the_others_follow_the_layers():
    predictions = random_predictions()
    losses = criterion()(predictions, TARGETS)
    for logits, boxes, suffix in (
        (predictions.encoder_logits, predictions.encoder_boxes, "_aux_2"),
        (predictions.layer_logits[1], predictions.layer_boxes[1], "_aux_1"),
        (predictions.logits, predictions.boxes, ""),
    ):
        alone = criterion()(Predictions(logits, boxes), TARGETS)
        for kind in WEIGHTS:
            assert losses[kind + suffix].item() == pytest.approx(alone[kind].item(), rel=1e-5)


def test_denoising_queries_are_compared_with_the_object_they_came_from():
    predictions = random_predictions()
    noisy = predictions.denoising
    losses = criterion()(predictions, TARGETS)
    normalizer = 2 * noisy.groups  # objects times groups
    for layer in range(3):
        expected = TARGETS[0].boxes.repeat(2, 1)
        result = noisy.boxes[layer, 0, noisy.positive_index[0]]
        distance = (result - expected).abs().sum() / normalizer
        giou = (1 - cxcywh_generalized_iou(result, expected)).sum() / normalizer
        assert losses[f"loss_bbox_dn_{layer}"].item() == pytest.approx(5 * distance.item(), rel=1e-5)
        assert losses[f"loss_giou_dn_{layer}"].item() == pytest.approx(2 * giou.item(), rel=1e-5)


def test_denoising_losses_are_divided_by_the_objects_that_are_denoised():
    """Denoising only the second of two objects, twice, gives the loss of an image without the first."""
    predictions = random_predictions()
    noisy = predictions.denoising
    noisy.positive_index = [torch.tensor([0, 4]), torch.zeros(0, dtype=torch.long)]
    noisy.object_index = [torch.tensor([1, 1]), torch.zeros(0, dtype=torch.long)]
    losses = criterion()(predictions, TARGETS)
    for layer in range(3):
        distance = (noisy.boxes[layer, 0, [0, 4]] - TARGETS[0].boxes[1]).abs().sum() / 2
        assert losses[f"loss_bbox_dn_{layer}"].item() == pytest.approx(5 * distance.item(), rel=1e-5)
    whole = criterion()(random_predictions(), TARGETS)
    assert losses["loss_bbox"].item() == pytest.approx(whole["loss_bbox"].item(), rel=1e-6)


def test_without_aux_loss_only_the_last_layer_counts():
    losses = criterion(aux_loss=False)(random_predictions(), TARGETS)
    assert set(losses) == {"loss"} | {f"{kind}{suffix}" for kind in WEIGHTS for suffix in ("", "_dn_2")}


@pytest.mark.parametrize("types,kinds", [(["vfl"], ["loss_vfl"]), (["boxes"], ["loss_bbox", "loss_giou"])])
def test_loss_types_choose_the_terms(types, kinds):
    predictions = random_predictions()
    predictions.denoising = None
    losses = criterion(loss_types=types)(predictions, TARGETS)
    assert set(losses) == {"loss"} | {f"{kind}{s}" for kind in kinds for s in ("", "_aux_0", "_aux_1", "_aux_2")}


def test_outside_training_the_loss_is_that_of_the_returned_layer():
    full = random_predictions()
    losses = criterion()(Predictions(full.logits, full.boxes), TARGETS)
    assert set(losses) == {"loss", *WEIGHTS}


@pytest.mark.parametrize("aux_loss", [True, False])
@pytest.mark.parametrize("types", [["vfl"], ["boxes"], ["vfl", "boxes"]])
@pytest.mark.parametrize("targets", [TARGETS, [target([], []), target([], [])]])
def test_every_output_has_a_gradient_whatever_is_switched_off(aux_loss, types, targets):
    """DistributedDataParallel waits for the gradient of each parameter in every step."""
    predictions = random_predictions()
    leaves = [predictions.layer_logits, predictions.layer_boxes, predictions.encoder_logits, predictions.encoder_boxes]
    if targets is TARGETS:
        leaves += [predictions.denoising.logits, predictions.denoising.boxes]
    else:
        predictions.denoising = None
    loss = criterion(aux_loss=aux_loss, loss_types=types)(predictions, targets)["loss"]
    assert torch.isfinite(loss)
    for gradient in torch.autograd.grad(loss, leaves):
        assert torch.isfinite(gradient).all()


def test_a_batch_without_objects_has_only_the_background_loss():
    predictions = random_predictions()
    predictions.denoising = None
    losses = criterion()(predictions, [target([], []), target([], [])])
    nothing = tuple(torch.zeros(0, dtype=torch.long) for _ in range(4))
    expected = varifocal_loss(predictions.logits[None], nothing, torch.zeros(0)).item()
    assert losses["loss_vfl"].item() == pytest.approx(expected, rel=1e-5)
    assert losses["loss_bbox"].item() == losses["loss_giou"].item() == 0


def test_a_spec_sets_every_weight_and_cost():
    spec = ModelSpec(
        vfl_loss_coef=2.0,
        bbox_loss_coef=3.0,
        giou_loss_coef=4.0,
        class_cost=5.0,
        bbox_cost=6.0,
        giou_cost=7.0,
        alpha=0.3,
        gamma=1.5,
        aux_loss=False,
        loss_types=["vfl"],
    )
    built = build_criterion(spec)
    assert built.weights == {"loss_vfl": 2.0, "loss_bbox": 3.0, "loss_giou": 4.0}
    matcher = built.matcher
    assert (matcher.class_cost, matcher.bbox_cost, matcher.giou_cost) == (5.0, 6.0, 7.0)
    assert (built.alpha, built.gamma, built.aux_loss, built.loss_types) == (0.3, 1.5, False, ("vfl",))
    doubled = build_criterion(dataclasses.replace(spec, vfl_loss_coef=4.0))
    predictions = random_predictions()
    one, two = built(predictions, TARGETS), doubled(predictions, TARGETS)
    assert two["loss_vfl"].item() == pytest.approx(2 * one["loss_vfl"].item(), rel=1e-5)
