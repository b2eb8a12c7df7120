"""Recomputed norms, activations and sums: identical gradients, less memory, no wrong values."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops import recompute
from rtdetr_tool.ops.batch_norm import fix_batch_norms
from rtdetr_tool.ops.onednn import use_onednn
from rtdetr_tool.ops.recompute import recomputing
from rtdetr_tool.ops.structures import Target
from rtdetr_tool.spec import spec_from_dict
from tests.training.test_ddp import NANO, TINY

R50 = {**TINY, "backbone": "resnet_50"}
DFINE = {"arch": "dfine", "num_select": 10, "dfine": {"variant": "n", "num_queries": 10}}
CONVNEXT = {**TINY, "backbone": "timm/test_convnext"}


def build(model):
    torch.manual_seed(0)
    spec = spec_from_dict({"results_dir": "unused", "model": model}).model
    detector = build_detector(spec, 3).to(memory_format=torch.channels_last).train()
    if spec.freeze_norm:
        detector.freeze_backbone(norms=True, stages=0)
    use_onednn(detector)
    return detector, build_criterion(spec)


def train_step(detector, criterion, enabled, bf16=False):
    """The loss after its backward pass."""
    torch.manual_seed(1)
    images = torch.rand(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    box = torch.tensor([[0.5, 0.5, 0.3, 0.4]])
    targets = [Target(box, torch.tensor([index]), index, (64, 64), (64.0, 64.0)) for index in range(2)]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        with recomputing(enabled):
            predictions = detector(images, targets)
        loss = criterion(predictions, targets)["loss"]
    loss.backward()
    return loss


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "model",
    [TINY, {**R50, "freeze_norm": True}, NANO, DFINE, CONVNEXT],
    ids=["R18", "R50 with frozen norms", "RF-DETR", "D-FINE", "ConvNeXt"],
)
def test_gradients_and_statistics_are_identical(model, bf16):
    detector, criterion = build(model)
    plain = copy.deepcopy(detector)
    assert torch.equal(train_step(plain, criterion, False, bf16), train_step(detector, criterion, True, bf16))
    pairs = zip(plain.named_parameters(), detector.parameters(), strict=True)
    for (name, before), after in pairs:
        assert (before.grad is None) == (after.grad is None), name
        assert before.grad is None or torch.equal(before.grad, after.grad), name
    for (name, before), after in zip(plain.named_buffers(), detector.buffers(), strict=True):
        assert torch.equal(before, after), name


def alive(kind):
    gc.collect()
    return [found for found in gc.get_objects() if type(found) is kind]


def stored_bytes(run, enabled):
    """Bytes of the storages that the result of `run` keeps for its backward pass."""
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    if not enabled:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            output = run()
    else:
        with recomputing():
            output = run()
        for kept in alive(recompute._Kept):
            keep(kept.tensor)
    assert output is not None
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize(
    ("model", "share"), [(TINY, 0.65), ({**R50, "freeze_norm": True}, 1.0), (NANO, 0.9)],
    ids=["R18", "R50 with frozen norms", "RF-DETR"],
)  # fmt: skip
def test_less_is_stored(model, share):
    detector, _ = build(model)
    images = torch.rand(2, 3, 192, 192).contiguous(memory_format=torch.channels_last)
    assert stored_bytes(lambda: detector.features(images), True) < share * stored_bytes(
        lambda: detector.features(images), False
    )


class Block(nn.Module):
    """Two convolutions with an activation in place, a shortcut added in place, and a linear layer that reads a view."""

    def __init__(self, activation):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.linear = nn.Linear(36, 2)
        self.activation = activation

    def forward(self, x):
        shortcut = self.activation(self.norm1(self.conv1(x)))
        x = self.norm2(self.conv2(shortcut))
        x += shortcut
        x = self.activation(x)
        return self.linear(x.flatten(1)).square().sum()


@pytest.fixture
def image():
    return torch.rand(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def gradients(module, loss, **options):
    return torch.autograd.grad(loss, list(module.parameters()), **options)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "activation", [nn.ReLU(inplace=True), nn.ReLU(), nn.SiLU(), nn.Hardswish(), nn.GELU()], ids=repr
)
def test_operators_in_place_and_views(image, activation, frozen):
    block = Block(activation)
    if frozen:
        fix_batch_norms(block)
    expected = gradients(block, copy.deepcopy(block)(image) * 0 + block(image))
    with recomputing():
        loss = block(image)
    for _ in range(2):
        for before, after in zip(expected, gradients(block, loss, retain_graph=True), strict=True):
            assert torch.equal(before, after)


def test_a_norm_in_eval_mode_is_recomputed_with_its_statistics(image):
    block = Block(nn.ReLU()).eval()
    expected = gradients(block, block(image))
    with recomputing():
        loss = block(image)
    for before, after in zip(expected, gradients(block, loss), strict=True):
        assert torch.equal(before, after)


def test_a_changed_output_is_not_mistaken_for_the_recorded_one(image):
    weight = torch.rand(4, 4, 1, 1, requires_grad=True)
    scale = torch.rand(4, requires_grad=True)

    def run():
        x = F.batch_norm(F.conv2d(image, weight), None, None, scale, None, training=True)
        x.mul_(2.0)  # not an operator that is recomputed
        return F.conv2d(F.conv2d(x, weight), weight).square().sum()

    expected = torch.autograd.grad(run(), [weight, scale])
    with recomputing():
        loss = run()
    for before, after in zip(expected, torch.autograd.grad(loss, [weight, scale]), strict=True):
        assert torch.equal(before, after)


def test_a_source_that_changes_before_the_backward_pass_is_an_error(image):
    weight = torch.rand(4, 4, 1, 1, requires_grad=True)
    with recomputing():
        x = F.conv2d(image, weight)
        loss = F.conv2d(F.relu(F.batch_norm(x, None, None, training=True)), weight).sum()
    x.detach().add_(1.0)
    with pytest.raises(RuntimeError, match=r"size \[2, 4, 3, 3\] .* was modified in place"):
        loss.backward()


def test_values_are_released_after_the_backward_pass(image):
    block = Block(nn.ReLU(inplace=True))
    with recomputing():
        loss = block(image)
    recipes = alive(recompute._Recipe)
    assert recipes
    gradients(block, loss, retain_graph=True)
    assert [recipe for recipe in recipes if recipe.result is not None] == []


def test_tensors_that_autograd_would_not_store_are_not_kept(image):
    """The sum of two outputs of linear layers is stored itself, instead of both."""
    first, second, third = (nn.Linear(3, 3) for _ in range(3))
    with recomputing():
        loss = third(first(image) + second(image)).sum()
    assert alive(recompute._Recipe) == []
    loss.backward()
