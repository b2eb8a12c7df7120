"""A checkpoint that a run resumes from belongs to it; what has changed since is refused or warned about."""

from __future__ import annotations

import re

import pytest

from rtdetr_tool.checkpoints.io import read_weights, save_checkpoint
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.spec.schema import field_names
from rtdetr_tool.training.fit import fit
from rtdetr_tool.training.resume_checks import SCORING_FIELDS


def test_resuming_with_another_model_reports_both_values(make_spec):
    fit(make_spec())
    with pytest.raises(CheckpointError, match=r"model\.dec_layers is 3 in the spec, but 2 in the checkpoint") as caught:
        fit(make_spec(model__dec_layers=3))
    assert "model_epoch_000.pth" in str(caught.value) and "another results_dir" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"train__optim__lr_layer_decay": 0.5}, r"lr_layer_decay is 0\.5, but 1\.0 in the checkpoint"),
        ({"train__optim__optimizer": "SGD"}, "optimizer is 'SGD', but 'AdamW' in the checkpoint"),
        ({"train__freeze": ["encoder"]}, r"freeze is \['encoder'\], but \[\] in the checkpoint"),
        ({"model__linear_proj_names": ["class_embed"]}, r"model\.linear_proj_names is \['class_embed'\], but"),
    ],
)
def test_resuming_with_another_optimizer_is_refused(make_spec, change, difference):
    fit(make_spec())
    with pytest.raises(CheckpointError, match=rf"model_epoch_000\.pth .*different optimizer.*{difference}"):
        fit(make_spec(train__num_epochs=2, **change))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"evaluate__max_dets": 300}, r"evaluate\.max_dets is 300, but was 100\."),
        ({"dataset__eval_class_ids": [1]}, r"dataset\.eval_class_ids is \[1\], but was None\."),
        ({"train__enable_ema": True}, r"train\.enable_ema is True, but was False\."),
        ({}, None),
    ],
)
def test_resuming_with_scores_that_are_measured_differently_is_warned_about(make_spec, caplog, change, difference):
    fit(make_spec())
    fit(make_spec(train__num_epochs=2, **change))
    warnings = [text for text in caplog.messages if "not comparable, because these fields have changed" in text]
    assert len(warnings) == (difference is not None)
    if difference:
        assert re.search(difference, warnings[0]) and warnings[0].startswith("Scores of ")


def test_resuming_with_other_validation_data_is_warned_about(make_spec, caplog):
    spec = make_spec()
    fit(spec)
    fit(make_spec(train__num_epochs=2, dataset__val_data_sources=spec.dataset.train_data_sources[0]))
    assert "these fields have changed: dataset.val_data_sources." in caplog.text


def test_the_fields_that_scores_depend_on_exist():
    assert set(SCORING_FIELDS) <= set(field_names())


@pytest.mark.parametrize("before", [True, False])
def test_resuming_with_another_aspect_ratio_is_refused(make_spec, before):
    fit(make_spec(dataset__augmentation__preserve_aspect_ratio=before))
    text = rf"preserve_aspect_ratio is {not before} in the spec, but {before} in the checkpoint"
    with pytest.raises(CheckpointError, match=text) as caught:
        fit(make_spec(dataset__augmentation__preserve_aspect_ratio=not before, train__num_epochs=2))
    assert "model_epoch_000.pth" in str(caught.value) and "another results_dir" in str(caught.value)


def test_resuming_from_bare_weights_is_refused_with_advice(make_spec, tmp_path):
    weights, _ = read_weights(fit(make_spec()).latest_path)
    path = save_checkpoint({"state_dict": weights}, tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="pretrained_model_path"):
        fit(make_spec(train__resume_training_checkpoint_path=str(path)))
