"""The names of logged metrics, read back from TensorBoard's files, and the names that callbacks can ask for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rtdetr_tool.catalog import ENCODERS, Encoder
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.spec.metric_names import averaged_name, logged_name, tao_name
from rtdetr_tool.spec.train import EarlyStoppingSpec
from rtdetr_tool.training import DetectionDataModule, DetectorModule, build_trainer
from rtdetr_tool.training.callbacks.early_stopping import EarlyStopping
from rtdetr_tool.training.callbacks.ema import ExponentialMovingAverage
from rtdetr_tool.training.callbacks.periodic_checkpoint import PeriodicCheckpoint

# The table of keys in RF-DETR's documentation of its training API, <class> filled in.
DOCUMENTED = [
    "train/loss", "val/loss", "val/mAP_50_95", "val/mAP_50", "val/mAP_75", "val/mAR", "val/ema_mAP_50_95", "val/F1",
    "val/precision", "val/recall", "val/AP/red", "val/AP/green", "val/segm_mAP_50_95", "val/segm_mAP_50",
]  # fmt: skip
TERMS = ["loss_ce", "loss_bbox", "loss_giou", "loss_mask_ce", "loss_mask_dice"]


@pytest.fixture(scope="module")
def masks(sources, tmp_path_factory):
    """The drawn datasets with the boxes as polygons."""
    folder, result = tmp_path_factory.mktemp("masks"), {}
    for split, source in sources.items():
        coco = json.loads(Path(source["json_file"]).read_text())
        for row in coco["annotations"]:
            x, y, w, h = row["bbox"]
            row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        file = folder / f"{split}.json"
        file.write_text(json.dumps(coco))
        result[split] = {**source, "json_file": str(file)}
    return result


@pytest.fixture
def segmenting(make_spec, masks, monkeypatch):
    """`segmenting(train__...=...)`: the spec of a small RF-DETR with masks."""
    monkeypatch.setitem(ENCODERS, "dinov2_windowed_small", Encoder("dinov2_windowed_small", 32, 2, 2, 0, "", ""))
    model = RfdetrSpec(
        variant="seg_nano", out_feature_indexes=[1], resolution=64, patch_size=16, num_windows=2, hidden_dim=32,
        sa_nheads=2, ca_nheads=4, num_queries=10, group_detr=2, dec_layers=1, dim_feedforward=32,
    )  # fmt: skip
    return lambda **changes: make_spec(
        **{
            "model__arch": "rfdetr", "model__rfdetr": model, "train__enable_ema": True, "dataset__batch_size": 4,
            "dataset__train_data_sources": [masks["train"]], "dataset__val_data_sources": masks["val"],
            "dataset__test_data_sources": masks["val"], "train__log_per_class_metrics": True, **changes,
        }
    )  # fmt: skip


def tensorboard_scalars(folder: Path) -> dict[str, list[float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(next(folder.rglob("events.*")).parent)).Reload()
    return {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_has_the_documented_keys_of_training_validation_and_test(segmenting):
    spec = segmenting(train__ema__validate_both=True)
    data = DetectionDataModule(spec)
    data.setup("fit")
    module, trainer = DetectorModule(spec, data.class_map), build_trainer(spec, log_every_n_steps=1)
    trainer.fit(module, data)
    fitted = dict(trainer.callback_metrics)
    trainer.test(module, data, verbose=False)
    logged = tensorboard_scalars(Path(spec.train.results_dir))

    assert [name for name in DOCUMENTED if name not in logged] == []
    assert {f"{phase}/{term}" for phase in ("train", "val", "test") for term in TERMS} <= set(logged)
    of_validation = {name.removeprefix("val/") for name in logged if name.startswith("val/") and "/ema_" not in name}
    assert {name.removeprefix("test/") for name in logged if name.startswith("test/")} == of_validation
    assert len(logged["train/loss_step"]) == 2 and len(logged["train/loss"]) == len(logged["val/loss"]) == 1
    assert logged["train/loss"][0] == pytest.approx(sum(logged["train/loss_step"]) / 2, rel=1e-5)
    assert {name.partition("/")[0] for name in logged} == {"train", "val", "test", "epoch"}
    for name in ("val/mAP_50_95", "val/mAP_50", "val/loss", "train/loss", "val/segm_mAP_50"):
        assert fitted[tao_name(name)] == fitted[name], name


def test_scores_of_the_average_alone_have_both_names(segmenting):
    from rtdetr_tool.training.fit import fit

    metrics = fit(segmenting()).metrics
    for name in ("mAP_50_95", "mAP_50", "mAP_75", "mAR", "segm_mAP_50_95"):
        assert metrics[f"val/ema_{name}"] == metrics[f"val/{name}"]
    assert "val/ema_F1" not in metrics and "val_mAP" not in metrics


def test_losses_of_a_test_can_be_skipped(make_spec):
    spec = make_spec(train__compute_test_loss=False)
    data = DetectionDataModule(spec)
    (tested,) = build_trainer(spec).test(DetectorModule(spec, data.class_map), data, verbose=False)
    assert "test/mAP_50_95" in tested and not any("loss" in name for name in tested)


@pytest.mark.parametrize(
    ("tao", "logged"),
    [
        ("val_mAP", "val/mAP_50_95"), ("val_mAP50", "val/mAP_50"), ("test_segm_mAP", "test/segm_mAP_50_95"),
        ("train_loss", "train/loss"), ("val_loss_bbox", "val/loss_bbox"),
    ],
)  # fmt: skip
def test_names_of_tao_are_translated_both_ways(tao, logged):
    assert logged_name(tao) == logged_name(logged) == logged
    assert tao_name(logged) == tao_name(tao) == tao
    assert averaged_name(tao) == averaged_name(logged)


def test_callbacks_accept_names_of_tao(tmp_path):
    assert PeriodicCheckpoint(tmp_path, monitor="val_mAP50").monitor == "val/mAP_50"
    assert EarlyStopping(monitor="val_segm_mAP").monitor == "val/segm_mAP_50_95"


@pytest.mark.parametrize(("use_ema", "waited"), [(False, 0), (True, 1)])
def test_early_stopping_follows_the_better_weights_or_the_average(use_ema, waited):
    average = ExponentialMovingAverage(validate_both=True)
    callback = EarlyStopping.from_spec(EarlyStoppingSpec(min_delta=0.0, use_ema=use_ema), "val_mAP")
    for raw, averaged in ((0.1, 0.5), (0.6, 0.4)):
        metrics = {"val/mAP_50_95": torch.tensor(raw), "val/ema_mAP_50_95": torch.tensor(averaged)}
        trainer = SimpleNamespace(
            callback_metrics=metrics,
            state=SimpleNamespace(fn="fit"),
            sanity_checking=False,
            callbacks=[average],
            current_epoch=0,
        )
        callback.on_validation_end(trainer, None)
    assert callback.waited == waited and callback.best == pytest.approx(0.5 if use_ema else 0.6)
