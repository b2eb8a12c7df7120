"""The PyTorch runtime gives the same results as its detector, which is not changed."""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.torch.runtime import TorchRuntime
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.classes import ClassEntry, ClassMap
from rtdetr_tool.ops.structures import Predictions
from rtdetr_tool.spec import ModelSpec

TINY = ModelSpec(
    backbone="resnet_18", hidden_dim=32, nheads=4, dim_feedforward=32, feat_channels=[32, 32, 32],
    num_queries=12, num_select=12, dec_layers=2, dn_number=4,
)  # fmt: skip
CLASSES = ClassMap([ClassEntry(0, 1, "a"), ClassEntry(1, 2, "b")])


def trained_detector():
    """Random weights, with batch norm statistics that matter when layers are fused."""
    torch.manual_seed(0)
    detector = build_detector(TINY, 2)
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.3, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return detector


def test_it_predicts_what_the_detector_does():
    detector, images = trained_detector(), torch.rand(2, 3, 96, 64)
    predictions = TorchRuntime(detector, CLASSES).predict(images)
    with torch.no_grad():
        expected = detector.eval()(images)
    assert predictions.logits.shape == (2, 12, 2)
    # compared as sets, because rounding may swap queries with nearly equal scores
    order, expected_order = (p.logits[..., 0].argsort(1) for p in (predictions, expected))
    for ours, reference in ((predictions.logits, expected.logits), (predictions.boxes, expected.boxes)):
        ours = ours.gather(1, order[..., None].expand_as(ours))
        reference = reference.gather(1, expected_order[..., None].expand_as(reference))
        torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)


def test_predictions_carry_no_gradient_and_only_what_evaluation_needs():
    predictions = TorchRuntime(trained_detector(), CLASSES).predict(torch.rand(1, 3, 64, 64))
    assert not predictions.logits.requires_grad
    assert type(predictions) is Predictions


def test_the_given_detector_stays_in_training_mode_and_unfused():
    detector = trained_detector()
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    runtime = TorchRuntime(detector, CLASSES)
    runtime.predict(torch.rand(1, 3, 64, 64))
    assert detector.training and not runtime.detector.training
    after = detector.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(runtime.detector.state_dict()) < len(before), "RepVGG blocks should be fused in the copy"
    shared = {p.data_ptr() for p in detector.parameters()} & {p.data_ptr() for p in runtime.detector.parameters()}
    assert not shared


def test_it_says_what_it_is_and_takes_any_input_size():
    runtime = TorchRuntime(trained_detector(), CLASSES, "cpu")
    assert (runtime.name, runtime.class_map, runtime.input_size) == ("torch", CLASSES, None)
    assert runtime.device == torch.device("cpu")
    for size in ((64, 64), (96, 160)):
        assert runtime.predict(torch.rand(1, 3, *size)).boxes.shape == (1, 12, 4)


def test_bf16_computes_products_in_bf16_and_gives_float32_predictions_close_to_fp32():
    detector, images = trained_detector(), torch.rand(2, 3, 64, 64)
    seen = []
    runtime = TorchRuntime(detector, CLASSES, dtype=torch.bfloat16)
    runtime.detector.backbone.layer2.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    predictions, exact = runtime.predict(images), TorchRuntime(detector, CLASSES).predict(images)
    assert seen == [torch.bfloat16] and runtime.name == "torch, bf16"
    assert predictions.logits.dtype == predictions.boxes.dtype == torch.float32
    scores, expected = (p.logits.sigmoid().flatten(1).sort(descending=True).values for p in (predictions, exact))
    assert not torch.equal(scores, expected)
    torch.testing.assert_close(scores, expected, atol=0.03, rtol=0)


def test_fp16_needs_a_gpu():
    with pytest.raises(UserError, match=r"fp16 is not supported on a CPU; use bf16 or fp32"):
        TorchRuntime(trained_detector(), CLASSES, dtype=torch.float16)


def test_a_compiled_network_fills_up_smaller_batches_and_predicts_the_same(monkeypatch):
    """Only with dynamo, because code generation takes minutes and does not change results."""
    monkeypatch.setattr(TorchRuntime, "compile_backend", "eager")
    torch._dynamo.reset()
    detector, images = trained_detector(), torch.rand(2, 3, 64, 64)
    runtime, plain = TorchRuntime(detector, CLASSES, compiled=True), TorchRuntime(detector, CLASSES)
    batches = []
    runtime.detector.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    assert runtime.name == "torch, compiled"
    for part in (images, images[:1]):
        torch.testing.assert_close(runtime.predict(part).logits, plain.predict(part).logits, atol=1e-4, rtol=1e-4)
    assert set(batches) == {2}
