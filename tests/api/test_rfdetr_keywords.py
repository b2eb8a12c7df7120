"""The fields of Roboflow's `TrainConfig` and `ModelConfig` as keywords of the Python API."""

from __future__ import annotations

import logging

import pytest
import torch
from pytorch_lightning import Callback

from rtdetr_tool.api import RFDETR, RFDETRNano
from rtdetr_tool.api.keywords import model_settings, train_settings
from rtdetr_tool.api.train_arguments import read_train_arguments
from rtdetr_tool.catalog import ENCODERS
from rtdetr_tool.errors import UserError
from rtdetr_tool.families import family_named
from rtdetr_tool.families.rfdetr.keywords import MODEL, TRAIN, TRAIN_DEPRECATED
from rtdetr_tool.spec.schema import field_names
from scripts.generate_rfdetr_fields import PAGE, with_tables
from tests.api.small import SMALL_RFDETR

FAMILY = family_named("rfdetr")
# A value other than the default for each field that works.
OTHER = {
    "lr": 3e-4, "lr_encoder": 2e-4, "batch_size": 2, "grad_accum_steps": 3, "eval_batch_size": 7,
    "auto_batch_target_effective": 32, "epochs": 5, "resume": "a.pth", "ema_decay": 0.9, "ema_tau": 10,
    "checkpoint_interval": 2, "warmup_epochs": 1.0, "lr_vit_layer_decay": 0.7, "lr_component_decay": 0.6,
    "drop_path": 0.1, "cls_loss_coef": 2.0, "dataset_file": "coco", "dataset_dir": "data", "output_dir": "out",
    "multi_scale": False, "expanded_scales": False, "use_ema": False, "ema_update_interval": 2, "eval_base_model": True,
    "eval_ema_only": True, "num_workers": 0, "weight_decay": 1e-3, "amp_dtype": "bf16", "early_stopping": True,
    "early_stopping_patience": 3, "early_stopping_min_delta": 0.1, "tensorboard": False, "wandb": True, "mlflow": True,
    "project": "p", "run": "r", "eval_max_dets": 50, "eval_interval": 2, "log_per_class_metrics": True,
    "aug_config": {}, "scale_jitter": False, "save_dataset_grids": True, "notes": {"a": 1}, "accelerator": "cpu",
    "keypoint_flip_pairs": [1, 2], "keypoint_l1_loss_coef": 2.0, "keypoint_findable_loss_coef": 2.0,
    "keypoint_visible_loss_coef": 2.0, "keypoint_nll_loss_coef": 2.0, "keypoint_oks_sigmas": [0.1],
    "clip_max_norm": 1.0, "seed": 3, "sync_bn": True, "strategy": "fsdp", "devices": 2, "num_nodes": 2,
    "lr_scheduler": "cosine", "lr_scheduler_kwargs": {"lr_drop": 7}, "optimizer": "sgd",
    "optimizer_kwargs": {"betas": (0.8, 0.999)}, "compute_val_loss": False, "compute_test_loss": False,
    "pin_memory": False, "early_stopping_use_ema": True, "best_model_metric": "mar", "skip_best_epochs": 2,
    "smooth_alpha": 0.5,
    "num_sanity_val_steps": 2, "lr_scheduler_interval": "epoch", "lr_scheduler_monitor": "val/mAP_50",
}  # fmt: skip
ELSEWHERE = {"class_names", "run_test"}  # read by `Detector.train`


@pytest.mark.parametrize(("rows", "name"), [(TRAIN, "TrainConfig"), (MODEL, "ModelConfig")])
def test_the_tables_have_the_fields_and_defaults_of_the_package(rows, name):
    config = pytest.importorskip("rfdetr.config", reason="requires the package rfdetr")
    fields = getattr(config, name).model_fields
    assert [row.name for row in rows] == list(fields)
    for row in rows:
        field = fields[row.name]
        if field.is_required():
            assert row.default is ..., row.name
        else:
            default = field.get_default(call_default_factory=True)
            assert row.default == getattr(default, "value", default), row.name


def test_the_page_has_the_tables():
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_tables(page), "run scripts/generate_rfdetr_fields.py"


@pytest.mark.parametrize("row", [row for row in TRAIN if row.status == "works"], ids=lambda row: row.name)
def test_a_field_that_works_sets_fields_of_the_spec(row):
    if row.name in ELSEWHERE:
        return
    settings = train_settings({row.name: OTHER[row.name]}, FAMILY)
    assert (settings and set(settings) <= set(field_names())) or row.name == "eval_ema_only"
    assert row.name == "eval_ema_only" or isinstance(row.rule, str) or settings != _of_default(row)


def _of_default(row):
    return {} if row.default is ... else train_settings({row.name: row.default}, FAMILY)


@pytest.mark.parametrize("row", [row for row in TRAIN if row.status == "warned"], ids=lambda row: row.name)
def test_a_field_without_effect_is_a_warning_with_the_reason(row, caplog):
    with caplog.at_level(logging.WARNING, "rtdetr_tool"):
        assert train_settings({row.name: row.default}, FAMILY) == {} and not caplog.records
        assert train_settings({row.name: "other"}, FAMILY) == {}
    (record,) = caplog.records
    assert row.name in record.getMessage() and row.note in record.getMessage()


@pytest.mark.parametrize("row", [row for row in TRAIN if row.status == "refused"], ids=lambda row: row.name)
def test_a_refused_field_is_an_error_with_the_reason(row):
    assert train_settings({row.name: row.default}, FAMILY) == {}
    with pytest.raises(UserError) as caught:
        train_settings({row.name: "other"}, FAMILY)
    assert row.name in str(caught.value) and row.note in str(caught.value) and row.note


@pytest.mark.parametrize("row", MODEL, ids=lambda row: row.name)
def test_a_field_of_the_model_works_warns_or_is_refused(row, caplog):
    if row.status == "refused":
        with pytest.raises(UserError, match=row.name):
            model_settings({row.name: "other"}, FAMILY, "RFDETRNano")
        return
    with caplog.at_level(logging.WARNING, "rtdetr_tool"):
        settings = model_settings({row.name: "other"}, FAMILY, "RFDETRNano")
    assert set(settings) <= set(field_names())
    assert bool(caplog.records) == (row.status == "warned")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"dataset_file": "webdataset"}, "dataset_file: 'webdataset' is not supported.*Convert"),
        ({"amp_dtype": "fp8"}, "amp_dtype: 'fp8' is not supported"),
        ({"multi_scale": "per-sample"}, "multi_scale: 'per-sample'"),
        ({"aug_config": {"Blur": 3}}, "aug_config: .* expected names"),
        ({"lr_scheduler": "mine.Schedule"}, "lr_scheduler: .* is not supported"),
        ({"best_model_metric": "loss"}, "best_model_metric: 'loss' is not supported"),
        ({"optimizer": "lion"}, "optimizer: 'lion' is not supported"),
        ({"optimizer_kwargs": 1}, "optimizer_kwargs: 1 is invalid"),
        ({"square_resize_div_64": False}, "preserve_aspect_ratio"),
        ({"notes": object()}, "notes: object is invalid"),
    ],
)
def test_values_that_are_not_supported_are_errors(keywords, message):
    with pytest.raises(UserError, match=message):
        train_settings(keywords, FAMILY)


def test_augmentations_are_flips_and_albumentations():
    blur = {"Blur": {"blur_limit": 3}}
    config = {"VerticalFlip": {"p": 0.2}, **blur, "OneOf": {"transforms": [blur, {"ToGray": {"p": 1.0}}], "p": 0.3}}
    name, entry = "__class_fullname__", {"__class_fullname__": "Blur", "p": 0.5, "blur_limit": 3}
    assert train_settings({"aug_config": config}, FAMILY) == {
        "dataset.augmentation.flip_prob": 0.0,
        "dataset.augmentation.vertical_flip_prob": 0.2,
        "dataset.augmentation.albumentations": [
            entry, {name: "OneOf", "p": 0.3, "transforms": [entry, {name: "ToGray", "p": 1.0}]},
        ],
    }  # fmt: skip
    assert train_settings({"aug_config": {}}, FAMILY) == {"dataset.augmentation.flip_prob": 0.0}
    flip = {"HorizontalFlip": {"p": 0.7}}
    assert train_settings({"aug_config": flip}, FAMILY) == {"dataset.augmentation.flip_prob": 0.7}


@pytest.mark.parametrize("name", ["callbacks", *TRAIN_DEPRECATED])
def test_deprecated_keywords_are_ignored_with_a_warning(name):
    given = {"on_fit_epoch_end": [print]} if name == "callbacks" else ()
    keywords = {} if name == "callbacks" else {name: 1}
    with pytest.warns(DeprecationWarning, match=name):
        arguments = read_train_arguments(given, keywords, FAMILY.deprecated_keywords)
    assert arguments.callbacks == () and arguments.keywords == {}


def test_resolution_can_be_given_to_train():
    assert train_settings({"resolution": 448}, FAMILY) == {"model.rfdetr.resolution": 448}


@pytest.mark.slow
def test_training_with_another_resolution_class_names_and_a_test(rfdetr, sample, tmp_path):
    import copy

    detector = copy.copy(rfdetr)
    common = {**sample.keywords, "test_data_sources": sample.source, "epochs": 1, "batch_size": 2, "multi_scale": False}
    with pytest.raises(UserError, match=r"class_names: .*'cat', 'dog'"):
        detector.train(**common, output_dir=tmp_path / "a", class_names=["dog", "cat"])
    with pytest.raises(UserError, match="test"):
        detector.train(**sample.keywords, output_dir=tmp_path / "b", run_test=True)
    assert not (tmp_path / "b").exists()
    result = detector.train(
        **common, output_dir=tmp_path / "c", class_names=["cat", "dog"], run_test=True, resolution=96,
        eval_batch_size=1,
    )  # fmt: skip
    assert detector.input_size == (96, 96) and detector.spec.model.rfdetr.resolution == 96
    assert result.metrics["test/mAP_50_95"] is not None and result.metrics["test/loss"] > 0
    logged = next((tmp_path / "c").rglob("metrics.csv")).read_text()
    assert "test/mAP_50_95" in logged and "val/mAP_50_95" in result.metrics


def test_the_encoder_can_be_frozen_and_gradients_checkpointed():
    chosen = {"freeze_encoder": True, "gradient_checkpointing": True, "amp": False, "compile": True}
    detector = RFDETRNano(None, 2, "cpu", backbone_lora=True, **chosen, **SMALL_RFDETR)
    train, lora = detector.spec.train, detector.spec.model.backbone_lora
    assert (train.freeze, train.activation_checkpoint, train.precision) == (["backbone"], True, "fp32")
    assert train.compile and (lora.enabled, lora.rank, lora.alpha, lora.dora) == (True, 16, 16, True)


def test_a_training_with_these_fields_freezes_and_recomputes_the_encoder(sample, tmp_path, monkeypatch):
    """In the network that is trained, not only in the spec; and the metric of the best epoch is the chosen one."""
    for name, row in ENCODERS.items():
        monkeypatch.setitem(ENCODERS, name, row._replace(width=32, depth=4, num_heads=2))
    chosen = {"freeze_encoder": True, "gradient_checkpointing": True, "out_feature_indexes": [1, 3]}
    detector = RFDETRNano(None, 2, "cpu", **chosen, **SMALL_RFDETR)
    before = {name: tensor.clone() for name, tensor in detector.network.state_dict().items()}
    seen = {}

    class Look(Callback):
        def on_train_start(self, trainer, module):
            seen["recomputes"] = module.detector.backbone.activation_checkpoint

    result = detector.train(
        **sample.keywords, epochs=1, batch_size=2, output_dir=tmp_path, callbacks=[Look()], best_model_metric="mar",
        multi_scale=False, tensorboard=False,
    )  # fmt: skip
    after = detector.network.state_dict()
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert seen == {"recomputes": True} and changed == {"encoder", "decoder"}
    assert result.best_metric == "val/mAR"


def test_the_base_class_cannot_be_created():
    with pytest.raises(UserError, match="RFDETRNano"):
        RFDETR()
