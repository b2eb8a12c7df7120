from __future__ import annotations

import copy
import re

import pytest
import torch

from rtdetr_tool.errors import UserError
from rtdetr_tool.losses.criterion import SetCriterion
from rtdetr_tool.losses.matcher import HungarianMatcher
from rtdetr_tool.ops.structures import Predictions

CRITERION = SetCriterion(HungarianMatcher(), {"loss_vfl": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0})


def test_training_gives_every_layer_the_encoder_and_the_denoising_queries(build, images, targets):
    result = build()(images, targets)
    assert result.layer_logits.shape == (3, 2, 9, 3) and result.layer_boxes.shape == (3, 2, 9, 4)
    assert torch.equal(result.logits, result.layer_logits[-1]) and torch.equal(result.boxes, result.layer_boxes[-1])
    assert result.encoder_logits.shape == (2, 9, 3) and result.encoder_boxes.shape == (2, 9, 4)
    assert result.denoising.groups == 3  # 6 requested, at most 2 objects
    assert result.denoising.logits.shape == (3, 2, 3 * 2 * 2, 3)
    assert ((result.boxes >= 0) & (result.boxes <= 1)).all()


def test_evaluation_gives_the_last_layer_alone(build, images, targets):
    detector = build().eval()
    with torch.no_grad():
        result = detector(images)
        assert type(result) is Predictions
        assert torch.equal(detector(images, targets).logits, result.logits)  # targets have no effect
        single = detector(images[:1])
    torch.testing.assert_close(single.logits, result.logits[:1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_eval_idx_returns_what_that_layer_predicts_in_training(build, images, index):
    detector = build(eval_idx=index).eval()
    with torch.no_grad():
        result = detector(images)
        detector.decoder.train()  # the only norms with batch statistics in the decoder are those of input_proj
        detector.decoder.input_proj.eval()
        layers = detector(images)
    torch.testing.assert_close(result.logits, layers.layer_logits[index])
    torch.testing.assert_close(result.boxes, layers.layer_boxes[index])


def test_layers_after_eval_idx_are_not_computed(build, images):
    detector = build(eval_idx=1).eval()
    for layer in detector.decoder.decoder.layers[2:]:
        layer.forward = lambda *a: pytest.fail("a layer after eval_idx ran")
    with torch.no_grad():
        detector(images)


def test_matching_queries_do_not_see_the_denoising_queries(build, images, targets):
    detector = build()
    with torch.no_grad():
        with_noise, without = detector(images, targets), detector(images)
    torch.testing.assert_close(with_noise.layer_logits, without.layer_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(with_noise.layer_boxes, without.layer_boxes, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (128, 64)])
def test_every_multiple_of_32_works_in_training_and_evaluation(build, targets, size):
    detector = build(num_queries=4)
    images = torch.rand(2, 3, *size)
    for mode in (True, False, True):
        detector.train(mode)
        assert detector(images, targets if mode else None).boxes.shape == (2, 4, 4)


def test_a_table_made_in_inference_mode_serves_training_later(build, images, targets):
    detector = build().eval()
    with torch.inference_mode():
        detector(images)
    CRITERION(detector.train()(images, targets), targets)["loss"].backward()


@pytest.mark.parametrize("given", ["targets", "no_objects"])
@pytest.mark.parametrize("num_denoising", [0, 6])
def test_every_parameter_has_a_gradient_in_every_step(build, images, request, given, num_denoising):
    """Also without any object in the batch, so that there are no denoising queries."""
    targets = request.getfixturevalue(given)
    detector = build(num_denoising=num_denoising)
    CRITERION(detector(images, targets), targets)["loss"].backward()
    missing = [name for name, p in detector.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert missing == []


def test_a_step_never_waits_for_a_value_of_the_network(build, images, targets, monkeypatch):
    detector = build()
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "numpy", "cpu", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, lambda self, *a, n=name: pytest.fail(f"{n} in the forward pass"))
    detector(images, targets)


def test_the_fused_copy_gives_the_same_output_and_leaves_the_original(build, images):
    detector = build()
    names = set(detector.state_dict())
    fused = detector.deploy()
    assert detector.training and not fused.training and set(detector.state_dict()) == names
    assert not any("running_mean" in name for name in fused.state_dict())
    detector.eval()
    with torch.no_grad():
        a, b = detector(images), fused(images)
    torch.testing.assert_close(a.logits, b.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.boxes, b.boxes, atol=1e-5, rtol=1e-5)


def test_channels_last_changes_nothing_but_rounding(build, images):
    detector = build().eval()
    other = copy.deepcopy(detector).to(memory_format=torch.channels_last)
    with torch.no_grad():
        a, b = detector(images), other(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(a.logits, b.logits, atol=1e-4, rtol=1e-4)


def test_bfloat16_autocast_trains(build, images, targets):
    detector = build()
    with torch.autocast("cpu", torch.bfloat16):
        predictions = detector(images, targets)
        loss = CRITERION(predictions, targets)["loss"]
    assert predictions.boxes.dtype == torch.float32 and torch.isfinite(loss)
    exact = CRITERION(detector(images, targets), targets)["loss_vfl"]
    loss.backward()
    assert exact.item() > 0
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters())


def test_frozen_modules_stay_as_they_are_whatever_mode_is_set(build, images, targets):
    detector = build()
    detector.freeze(["backbone", "decoder.decoder.layers.0"])
    detector.train()
    assert detector.training and not detector.backbone.training and detector.encoder.training
    assert not any(m.training for m in detector.backbone.modules())
    before = copy.deepcopy(detector.backbone.state_dict())
    CRITERION(detector(images, targets), targets)["loss"].backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in detector.backbone.state_dict().items())
    names = {name: parameter.grad is None for name, parameter in detector.named_parameters()}
    chosen = re.compile(r"backbone\.|decoder\.decoder\.layers\.0\.")
    assert {name for name, frozen in names.items() if frozen} == {name for name in names if chosen.match(name)}


def test_freezing_an_unknown_module_names_near_ones(build):
    with pytest.raises(
        UserError, match=r"no module 'decoder\.decoder\.layer'; did you mean .*decoder\.decoder\.layers"
    ):
        build().freeze(["decoder.decoder.layer"])
    with pytest.raises(UserError, match="no module ''"):
        build().freeze([""])


@pytest.mark.filterwarnings("ignore")
def test_a_traced_graph_takes_any_batch_size(build, tmp_path):
    """As the ONNX export requires: no fixed batch size, and only standard operators of opset 17."""
    onnxruntime = pytest.importorskip("onnxruntime")

    class Outputs(torch.nn.Module):
        def __init__(self, detector):
            super().__init__()
            self.detector = detector

        def forward(self, images):
            actual = self.detector(images)
            return actual.logits, actual.boxes

    wrapped = Outputs(build().deploy()).eval()
    axes = {name: {0: "batch"} for name in ("inputs", "pred_logits", "pred_boxes")}
    file = tmp_path / "detector.onnx"
    torch.onnx.export(
        wrapped,
        (torch.rand(2, 3, 64, 96),),
        file,
        input_names=["inputs"],
        output_names=["pred_logits", "pred_boxes"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = torch.rand(batch, 3, 64, 96)
        logits, boxes = session.run(None, {"inputs": images.numpy()})
        with torch.no_grad():
            expected = wrapped(images)
        torch.testing.assert_close(torch.from_numpy(logits), expected[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.from_numpy(boxes), expected[1], atol=1e-4, rtol=1e-4)
