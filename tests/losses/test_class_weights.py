"""`train.class_weights`: the class loss of each class is multiplied by its weight, with every family and class loss."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from rtdetr_tool.errors import UserError
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.classes import ClassEntry, ClassMap
from rtdetr_tool.ops.structures import Target
from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.training.class_weights import set_class_weights, weights_by_index
from rtdetr_tool.training.module import DetectorModule

SIDE = 64
NAMES = ("rbc", "wbc", "platelets")
CLASSES = ClassMap([ClassEntry(index, index + 1, name) for index, name in enumerate(NAMES)])
WEIGHTS = {"wbc": 2.0, "platelets": 0.25}
RTDETR = {
    "backbone": "timm/test_resnet", "hidden_dim": 32, "nheads": 4, "dim_feedforward": 32, "num_queries": 10,
    "feat_channels": [32, 32, 32], "dec_layers": 2, "dn_number": 4,
}  # fmt: skip
DFINE = {"variant": "n", "num_queries": 10, "dn_number": 4, "hidden_dim": 32, "dec_hidden_dim": 32}
MODELS = {
    "vfl": RTDETR,
    "mal": {**RTDETR, "loss_types": ["mal", "boxes"]},
    "D-FINE vfl": {"arch": "dfine", "dfine": DFINE},
    "D-FINE mal": {"arch": "dfine", "dfine": {**DFINE, "class_loss": "mal"}},
    "RF-DETR": {"arch": "rfdetr", "rfdetr": {"variant": "nano", "num_queries": 10, "group_detr": 2, "dec_layers": 2}},
}


def spec_of(model, **train):
    augmentation = {"multi_scales": [], "train_spatial_size": [SIDE, SIDE], "eval_spatial_size": [SIDE, SIDE]}
    return spec_from_dict(
        {"model": model, "dataset": {"num_classes": 3, "augmentation": augmentation}, "train": {"seed": 1, **train}}
    )


@pytest.fixture(scope="module")
def outputs():
    """The predictions of a model for two images with objects of all classes, computed once per model."""
    kept = {}

    def predict(kind):
        if kind not in kept:
            torch.manual_seed(0)
            detector = build_detector(spec_of(MODELS[kind]).model, 3).train()
            kept[kind] = detector(torch.rand(2, 3, SIDE, SIDE), TARGETS)
        return kept[kind]

    return predict


BOXES = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.2], [0.4, 0.7, 0.3, 0.4]])
TARGETS = [
    Target(BOXES, torch.tensor([0, 1, 2]), 0, (SIDE, SIDE), (float(SIDE), float(SIDE))),
    Target(BOXES[:1], torch.tensor([1]), 1, (SIDE, SIDE), (float(SIDE), float(SIDE))),
]


def logits_of(predictions) -> dict[str, Tensor]:
    """All supervised logits, which end in a class axis."""
    repeated = {"logits"} if hasattr(predictions, "layer_logits") else set()  # those of the last layer
    tensors = {field.name: getattr(predictions, field.name) for field in dataclasses.fields(predictions)}
    found = {
        name: x for name, x in tensors.items() if name.endswith("logits") and x is not None and name not in repeated
    }
    if tensors.get("denoising") is not None:
        found |= {f"denoising {name}": x for name, x in logits_of(tensors["denoising"]).items()}
    return found


def class_loss_gradients(kind, outputs, weights):
    criterion = build_criterion(spec_of(MODELS[kind]).model)
    set_class_weights(criterion, weights, CLASSES, 3)
    losses = criterion(outputs(kind), TARGETS)
    names = [name for name in losses if name.startswith(criterion.class_term)]
    logits = logits_of(outputs(kind))
    gradients = torch.autograd.grad(
        sum(losses[name] for name in names), list(logits.values()), retain_graph=True, allow_unused=True
    )
    return dict(zip(logits, gradients, strict=True)), losses


@pytest.mark.parametrize("kind", MODELS)
def test_the_gradient_of_each_class_is_multiplied_by_its_weight_and_no_other_loss_changes(outputs, kind):
    plain, losses = class_loss_gradients(kind, outputs, None)
    weighted, weighted_losses = class_loss_gradients(kind, outputs, WEIGHTS)
    assert {"layer_logits", "encoder_logits"} <= set(plain) and (kind == "RF-DETR" or "denoising logits" in plain)
    factors = torch.tensor([1.0, 2.0, 0.25])
    for name, gradient in plain.items():
        assert gradient.abs().amax(dim=tuple(range(gradient.ndim - 1))).min() > 0, name
        torch.testing.assert_close(weighted[name], gradient * factors, atol=1e-10, rtol=1e-5, msg=name)
    term = build_criterion(spec_of(MODELS[kind]).model).class_term
    for name, loss in losses.items():
        if name != "loss":
            assert torch.equal(loss, weighted_losses[name]) != name.startswith(term), name


@pytest.mark.parametrize("kind", MODELS)
def test_weights_of_1_and_a_weight_for_all_classes(outputs, kind):
    _, plain = class_loss_gradients(kind, outputs, None)
    _, ones = class_loss_gradients(kind, outputs, dict.fromkeys(NAMES, 1.0))
    _, twos = class_loss_gradients(kind, outputs, dict.fromkeys(NAMES, 2.0))
    term = build_criterion(spec_of(MODELS[kind]).model).class_term
    for name, loss in plain.items():
        assert torch.equal(loss, ones[name]), name
        if name.startswith(term):
            torch.testing.assert_close(twos[name], 2 * loss, rtol=1e-6, atol=0, msg=name)


@pytest.mark.parametrize("model", ["vfl", "RF-DETR"])
def test_the_spec_reaches_the_loss_of_a_run_and_no_checkpoint_contains_it(model):
    module = DetectorModule(spec_of(MODELS[model], class_weights=WEIGHTS), CLASSES)
    assert module.criterion.class_weights.tolist() == [1.0, 2.0, 0.25]
    assert not any("class_weights" in name for name in module.state_dict())
    assert copy.deepcopy(module).criterion.class_weights.tolist() == [1.0, 2.0, 0.25]
    assert DetectorModule(spec_of(MODELS[model]), CLASSES).criterion.class_weights is None


def test_logits_without_a_class_have_weight_1():
    gaps = ClassMap([ClassEntry(1, 1, "rbc"), ClassEntry(3, 3, "wbc")], 5)
    assert weights_by_index({"wbc": 3.0}, gaps, 6).tolist() == [1.0, 1.0, 1.0, 3.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"wbs": 2.0}, r"class_weights: 'wbs' not among the classes \(did you mean 'wbc'\?\); expected .*'rbc', 'wbc'"),
        ({"WBC": 2.0, "x": 1.0}, r"'WBC', 'x' not among the classes \('WBC' is 'wbc' there\)"),
    ],
)
def test_an_unknown_class_is_an_error_with_the_classes(weights, message):
    with pytest.raises(UserError, match=message):
        weights_by_index(weights, CLASSES, 3)


def test_weights_without_a_class_loss_are_an_error():
    with pytest.raises(UserError, match=r"class_weights is not supported without a class loss.* model\.loss_types"):
        DetectorModule(spec_of({**RTDETR, "loss_types": ["boxes"]}, class_weights=WEIGHTS), CLASSES)


@pytest.mark.parametrize("weight", [0.0, -1.0, "heavy"])
def test_a_weight_is_a_number_above_0(weight):
    with pytest.raises(UserError, match=r"train\.class_weights\.wbc: .* is invalid; expected a number above 0"):
        spec_of(RTDETR, class_weights={"wbc": weight})
