"""A detector has one set of weights, those of its network, and can be copied and pickled at any time."""

from __future__ import annotations

import copy
import logging
import pickle

import numpy as np
import onnx
import pytest
import torch

import rtdetr_tool
from rtdetr_tool.api import RFDETR, Detector
from rtdetr_tool.catalog import ENCODERS, RFDETR_VARIANTS, Encoder
from rtdetr_tool.checkpoints.io import save_checkpoint
from rtdetr_tool.checkpoints.metadata import KEY, build_metadata
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.spec import spec_to_dict


def by_pickle(detector):
    return pickle.loads(pickle.dumps(detector))


def scores(detector, sample):
    return np.sort(detector.predict(sample.image(1), threshold=0.0).confidence)


@torch.no_grad()
def in_place(network):
    for parameter in network.parameters():
        parameter.mul_(0.5)


def through_data(network):
    for parameter in network.parameters():
        parameter.data.mul_(0.5)


def one_row_through_data(network):
    parameters = dict(network.named_parameters())
    head = next(name for name in parameters if name.endswith(("dec_score_head.0.bias", "decoder.class_embed.bias")))
    parameters[head].data[0] = 5.0


def replaced(network):
    for parameter in network.parameters():
        parameter.data = 0.5 * parameter.data


def loaded(network):
    state = {n: 0.5 * tensor if tensor.is_floating_point() else tensor for n, tensor in network.state_dict().items()}
    network.load_state_dict(state)


def by_an_optimizer(network):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for parameter in network.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()


def statistics(network):
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.mul_(4.0)


CHANGES = [in_place, through_data, one_row_through_data, replaced, loaded, by_an_optimizer]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_predictions_follow_the_weights(detector, sample, change):
    used, unused = copy.deepcopy(detector), copy.deepcopy(detector)
    before = scores(used, sample)
    change(used.network)
    change(unused.network)
    expected = scores(unused, sample)
    assert np.abs(expected - before).max() > 1e-3
    np.testing.assert_array_equal(scores(used, sample), expected)


def test_predictions_follow_the_statistics_of_batch_norms(rtdetr, sample):
    used, unused = copy.deepcopy(rtdetr), copy.deepcopy(rtdetr)
    before = scores(used, sample)
    statistics(used.network)
    statistics(unused.network)
    assert not np.array_equal(scores(used, sample), before)
    np.testing.assert_array_equal(scores(used, sample), scores(unused, sample))


def test_scores_and_optimized_predictions_follow_the_weights(rtdetr, sample):
    used, unused = copy.deepcopy(rtdetr), copy.deepcopy(rtdetr)
    used.optimize_for_inference(dtype="bfloat16", compile=False)
    used.predict(sample.image(1))
    loaded(used.network)
    loaded(unused.network)
    data = {"test_data_sources": sample.source, "num_workers": 0}
    assert used.runtime.dtype == torch.bfloat16
    used.remove_optimized_model()
    assert used.evaluate(**data).stats == unused.evaluate(**data).stats


def test_scores_use_the_preprocessing_of_training(rtdetr, sample):
    data = {"test_data_sources": sample.source, "num_workers": 0}
    with pytest.raises(CheckpointError, match="preserve_aspect_ratio is True in the spec, but False in the checkpoint"):
        rtdetr.evaluate(**data, preserve_aspect_ratio=True)
    assert rtdetr.evaluate(**data, preserve_aspect_ratio=False).stats == rtdetr.evaluate(**data).stats


def test_unchanged_weights_keep_their_runtime(detector, sample):
    detector.predict(sample.image(1))
    assert detector.runtime is detector.runtime


@pytest.mark.parametrize("make", [copy.deepcopy, by_pickle])
def test_a_detector_can_be_copied_at_any_time(detector, sample, make):
    original = make(copy.copy(detector))
    expected = scores(original, sample)
    made = make(original)
    assert type(made) is type(detector) and made.network is not original.network
    np.testing.assert_array_equal(scores(made, sample), expected)
    loaded(made.network)
    assert not np.array_equal(scores(made, sample), expected)
    np.testing.assert_array_equal(scores(original, sample), expected)


def test_an_optimized_detector_can_be_copied(rtdetr, sample):
    original = copy.deepcopy(rtdetr)
    original.optimize_for_inference(dtype="bfloat16", compile=False)
    expected = scores(original, sample)
    for made in (copy.deepcopy(original), by_pickle(original)):
        assert made.runtime.dtype == torch.bfloat16
        np.testing.assert_array_equal(scores(made, sample), expected)


@pytest.mark.parametrize("family", ["rtdetr", pytest.param("rfdetr", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_detector_can_be_copied_after_training_and_export(request, family, sample, tmp_path):
    original = copy.deepcopy(request.getfixturevalue(family))
    original.predict(sample.image(1))
    original.train(**sample.keywords, epochs=1, device="cpu", wandb=False, output_dir=tmp_path, multi_scale=False)
    graph = Detector.from_checkpoint(original.export(tmp_path / "out"), device="cpu")
    for each in (original, graph):
        expected = scores(each, sample)
        for made in (copy.deepcopy(each), by_pickle(each)):
            assert made.class_names == ["cat", "dog"] and made.source == each.source
            np.testing.assert_array_equal(scores(made, sample), expected)


def test_a_detector_of_a_missing_gpu_predicts_on_the_cpu(rtdetr, sample, caplog, monkeypatch):
    original = copy.copy(rtdetr)
    original.device = torch.device("cuda", 63)
    with caplog.at_level(logging.WARNING):
        made = pickle.loads(pickle.dumps(original))
    assert made.device == torch.device("cpu") and "because cuda:63 is not available" in caplog.text
    np.testing.assert_array_equal(scores(made, sample), scores(rtdetr, sample))


@pytest.mark.parametrize("variant", RFDETR_VARIANTS)
def test_a_checkpoint_of_every_variant_opens_as_its_class(variant, monkeypatch, tmp_path):
    tiny = {name: Encoder(name, 32, 2, 2, row.num_registers, "", "") for name, row in ENCODERS.items()}
    for name, row in tiny.items():
        monkeypatch.setitem(ENCODERS, name, row)
    small = {"out_feature_indexes": [1], "resolution": 3 * RFDETR_VARIANTS[variant].patch_size
             * RFDETR_VARIANTS[variant].num_windows, "hidden_dim": 32, "sa_nheads": 2, "ca_nheads": 4,
             "num_queries": 4, "group_detr": 2, "dec_layers": 1, "dim_feedforward": 16}  # fmt: skip
    kind = next(kind for kind in RFDETR.__subclasses__() if kind.variant == variant)
    assert getattr(rtdetr_tool, kind.__name__) is kind
    original = kind(pretrain_weights=None, num_classes=2, device="cpu", **small)
    meta = build_metadata("test", spec_to_dict(original.spec), [])
    save_checkpoint({"state_dict": original.network.state_dict(), KEY: meta}, tmp_path / "a.pth")
    opened = Detector.from_checkpoint(tmp_path / "a.pth", device="cpu")
    assert type(opened) is kind is type(RFDETR.from_checkpoint(tmp_path / "a.pth", device="cpu"))
    expected = "masks" if "Seg" in kind.__name__ else "keypoints" if "Keypoint" in kind.__name__ else "boxes"
    assert opened.size == original.size and opened.spec.model.predicts == expected
    result = opened.predict(np.zeros((40, 40, 3), np.uint8), threshold=0.0)
    assert (getattr(result, "mask", None) is not None) == (expected == "masks")
    assert hasattr(result, "keypoint_confidence") == (expected == "keypoints")


def test_exceptions_are_also_the_standard_ones(rfdetr, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Detector.from_checkpoint(tmp_path / "no.pth")
    with pytest.raises(FileNotFoundError, match="not found"):
        rfdetr.predict(tmp_path / "no.jpg")
    with pytest.raises(TypeError, match="not an image"):
        rfdetr.predict(7)
    with pytest.raises(ValueError, match="threshold"):
        rfdetr.predict(np.zeros((4, 4, 3), np.uint8), threshold=3)
    with pytest.raises(ValueError, match="patch_size"):
        rfdetr.predict(np.zeros((4, 4, 3), np.uint8), patch_size=3)


@pytest.mark.slow
def test_rfdetr_exports_the_names_of_its_package_and_one_image_is_not_a_list(rfdetr, tmp_path, caplog):
    path = rfdetr.export(tmp_path, notes={"lens": 3}, patch_size=16, infer_dir=None)
    graph = onnx.load(path)
    assert [entry.name for entry in graph.graph.input] == ["input"]
    assert [entry.name for entry in graph.graph.output] == ["dets", "labels"]
    assert {row.key: row.value for row in graph.metadata_props}["notes"] == '{"lens": 3}'
    assert path.name == "rfdetr-nano.onnx"
    image = np.zeros((40, 40, 3), np.uint8)
    assert not isinstance(rfdetr.predict([image]), list) and len(rfdetr.predict([image, image])) == 2
    rfdetr.predict(image, strange=1)
    assert "strange has no effect" in caplog.text
