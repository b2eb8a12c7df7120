"""A detector has one set of weights, those of its network, and can be copied and pickled at any time."""

from __future__ import annotations

import copy
import logging
import pickle

import numpy as np
import pytest
import torch

from rtdetr_tool.api import Detector
from rtdetr_tool.errors import CheckpointError


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


def test_scores_are_of_images_as_the_detector_was_trained(rtdetr, sample):
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


def test_a_detector_of_a_gpu_that_is_not_here_predicts_on_the_cpu(rtdetr, sample, caplog, monkeypatch):
    original = copy.copy(rtdetr)
    original.device = torch.device("cuda", 63)
    with caplog.at_level(logging.WARNING):
        made = pickle.loads(pickle.dumps(original))
    assert made.device == torch.device("cpu") and "cuda:63, which is not here" in caplog.text
    np.testing.assert_array_equal(scores(made, sample), scores(rtdetr, sample))
