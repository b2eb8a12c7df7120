"""Training runs from a spec: files, resuming, initial weights, dry runs, seeds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from rtdetr_tool.checkpoints.io import load_checkpoint, read_weights, save_checkpoint
from rtdetr_tool.errors import RtdetrError, UserError
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.formats.opening import open_detector
from rtdetr_tool.spec import read_spec
from rtdetr_tool.training.datamodule import DetectionDataModule
from rtdetr_tool.training.fit import fit
from rtdetr_tool.training.module import DetectorModule
from rtdetr_tool.training.trainer import seed_run


class Losses(pl.Callback):
    """The loss of every step."""

    def __init__(self):
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())


def _names(folder) -> list[str]:
    return sorted(p.name for p in Path(folder).iterdir() if p.suffix == ".pth")


def _same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_writes_checkpoints_links_and_results(make_spec):
    spec = make_spec(train__num_epochs=3, train__checkpoint_interval=2, train__enable_ema=True)
    result = fit(spec)
    folder = Path(spec.train.results_dir)
    assert _names(folder) == [
        "model_epoch_001-EMA.pth", "model_epoch_001.pth", "model_epoch_002-EMA.pth", "model_epoch_002.pth",
        "rtdetr_model_best.pth", "rtdetr_model_latest.pth",
    ]  # fmt: skip
    assert os.readlink(folder / "rtdetr_model_latest.pth") == "model_epoch_002-EMA.pth"
    assert result.latest_path == folder / "model_epoch_002-EMA.pth"
    assert result.best_path == folder / "rtdetr_model_best.pth"
    expected = {"train/loss", "train/loss_vfl", "train/lr", "val/loss", "val/mAP_50_95", "val/mAP_50"}
    assert expected <= set(result.metrics) and not any("_mAP" in name for name in result.metrics if "ema_" not in name)
    best = load_checkpoint(result.best_path)
    assert best["rtdetr_tool"]["weights"] == "ema" and best["epoch"] == result.best_epoch
    assert best["rtdetr_tool"]["metrics"]["val/mAP_50_95"] == pytest.approx(result.best_score)
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_a_checkpoint_has_spec_classes_and_tao_names(make_spec):
    spec = make_spec()
    payload = load_checkpoint(fit(spec).latest_path)
    assert payload["tao_model"] == "rtdetr" and payload["epoch"] == 0
    assert all(name.startswith("model.model.") for name in payload["state_dict"])
    meta = payload["rtdetr_tool"]
    assert [c["name"] for c in meta["classes"]] == ["red", "green"] and meta["weights"] == "raw"
    assert json.loads(json.dumps(meta["spec"]))["model"]["backbone"] == "timm/test_resnet"


def test_a_checkpoint_and_its_ema_twin_have_the_same_training_state(make_spec):
    spec = make_spec(train__enable_ema=True)
    fit(spec)
    folder = Path(spec.train.results_dir)
    raw, ema = (load_checkpoint(folder / f"model_epoch_000{suffix}.pth") for suffix in ("", "-EMA"))
    assert ema["rtdetr_tool"]["weights"] == "ema" and raw["rtdetr_tool"]["weights"] == "raw"
    assert _same(raw["state_dict"], ema["raw_state_dict"]) and _same(raw["ema_state_dict"], ema["state_dict"])
    assert not _same(raw["state_dict"], ema["state_dict"])


def test_step_interval_file_names_have_epoch_and_step(make_spec):
    spec = make_spec(train__checkpoint_interval=3, train__checkpoint_interval_unit="step", train__num_epochs=2)
    fit(spec)  # 8 images in batches of 4: two steps an epoch
    names = _names(spec.train.results_dir)
    assert "model_epoch_001_step_00003.pth" in names and "model_epoch_001.pth" in names
    assert "model_epoch_000.pth" not in names


@pytest.mark.slow  # tests/training/test_resume.py resumes in the default run
@pytest.mark.parametrize("kind", ["automatic", "raw", "ema"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(make_spec, tmp_path, kind):
    changes = {
        "train__num_epochs": 4, "train__checkpoint_interval": 2, "train__enable_ema": True,
        "train__optim__warmup_steps": 5, "train__optim__lr": 1e-3,
        "train__optim__lr_steps": [3], "dataset__workers": int(kind == "automatic"),
        "dataset__augmentation__multi_scales": [32, 64],
        "dataset__augmentation__distortion_prob": 0.8, "dataset__augmentation__iou_crop_prob": 0.8,
        "model__dropout_ratio": 0.1,
    }  # fmt: skip
    uninterrupted = make_spec(**changes, train__results_dir=str(tmp_path / "uninterrupted"))
    fit(uninterrupted)

    class Kill(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

    interrupted = make_spec(**changes, train__results_dir=str(tmp_path / "interrupted"))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(interrupted, callbacks=[Kill()])
    torch.manual_seed(99)  # the random state of the process must not matter
    if kind != "automatic":
        name = "model_epoch_001.pth" if kind == "raw" else "model_epoch_001-EMA.pth"
        path = str(tmp_path / "interrupted" / name)
        interrupted = make_spec(
            **changes, train__results_dir=str(tmp_path / "elsewhere"), train__resume_training_checkpoint_path=path
        )
    result = fit(interrupted)
    assert result.resumed_from is not None and result.epochs == 4
    for name in ("model_epoch_003.pth", "model_epoch_003-EMA.pth"):
        a = load_checkpoint(Path(uninterrupted.train.results_dir) / name)
        b = load_checkpoint(Path(interrupted.train.results_dir) / name)
        assert _same(a["state_dict"], b["state_dict"]), name
        assert a["rtdetr_tool"]["metrics"] == b["rtdetr_tool"]["metrics"]
        assert a["lr_schedulers"] == b["lr_schedulers"] and a["global_step"] == b["global_step"]


def test_a_finished_run_is_not_trained_again(make_spec):
    spec = make_spec()
    first = fit(spec)
    before = os.stat(first.latest_path).st_mtime_ns
    again = fit(spec)
    assert again.resumed_from == first.latest_path and os.stat(first.latest_path).st_mtime_ns == before
    assert again.best_score == first.best_score


@pytest.mark.slow
def test_a_resumed_run_does_not_need_its_initial_weights(make_spec, tmp_path):
    start = fit(make_spec(train__results_dir=str(tmp_path / "first"))).latest_path
    fit(make_spec(train__pretrained_model_path=str(start)))
    start.unlink()
    again = fit(make_spec(train__pretrained_model_path=str(start), train__num_epochs=2))
    assert again.resumed_from is not None and again.epochs == 2


def test_the_number_of_classes_is_stored_when_the_batch_size_is_auto(make_spec):
    result = fit(make_spec(dataset__num_classes=None, dataset__batch_size=0, train__effective_batch_size=2))
    opened = open_detector(str(result.latest_path), read_spec(None))
    assert opened.spec.dataset.num_classes == 2
    assert load_checkpoint(result.latest_path)["rtdetr_tool"]["spec"]["dataset"]["batch_size"] == 2


def test_pretrained_weights_are_loaded_with_another_number_of_classes(make_spec, tmp_path, caplog):
    path = fit(make_spec(train__results_dir=str(tmp_path / "first"))).latest_path
    source, _ = read_weights(path)
    spec = make_spec(
        train__pretrained_model_path=str(path), dataset__num_classes=5, train__optim__lr=1e-12,
        train__optim__lr_backbone=1e-12,
    )  # fmt: skip
    caplog.set_level("INFO", logger="rtdetr_tool.training.initial_weights")
    result, _ = read_weights(fit(spec).latest_path)
    torch.testing.assert_close(result["backbone.conv1.0.weight"], source["backbone.conv1.0.weight"])
    head = "decoder.enc_score_head.weight"
    assert result[head].shape[0] == 5
    torch.testing.assert_close(result[head][:2], source[head][:2])  # the two classes of the data, copied by name
    assert "Copied the class rows of 2 classes by name" in caplog.text


def test_a_pretrained_timm_backbone_is_loaded_and_its_norms_are_frozen(make_spec, tmp_path):
    import timm

    network = timm.create_model("resnet18")
    path = save_checkpoint({"state_dict": network.state_dict()}, tmp_path / "resnet18.pth")
    spec = make_spec(model__backbone="resnet_18", model__pretrained_backbone_path=str(path))
    weights, _ = read_weights(fit(spec).latest_path)
    expected = network.state_dict()
    torch.testing.assert_close(weights["backbone.bn1.running_mean"], expected["bn1.running_mean"])
    torch.testing.assert_close(weights["backbone.conv1.weight"], expected["conv1.weight"])
    assert not torch.equal(weights["backbone.layer2.0.downsample.0.weight"], expected["layer2.0.downsample.0.weight"])


def test_a_dry_run_builds_everything_and_writes_nothing(make_spec):
    spec = make_spec(train__is_dry_run=True)
    result = fit(spec)
    assert result.dry_run and result.metrics["train/loss"] > 0 and result.metrics["val/loss"] > 0
    assert not Path(spec.train.results_dir).exists()


def test_a_dry_run_reports_problems(make_spec):
    with pytest.raises(UserError, match="does not exist"):
        fit(make_spec(train__is_dry_run=True, train__pretrained_model_path="/nowhere/a.pth"))
    with pytest.raises(UserError, match="necoder"):
        fit(make_spec(train__is_dry_run=True, train__freeze=["necoder"]))


@pytest.mark.parametrize(("arch", "rows"), [("rtdetr", 2), ("rfdetr", 3)])
def test_the_number_of_outputs_follows_from_data_and_family(make_spec, arch, rows):
    rfdetr = RfdetrSpec(resolution=64, dec_layers=1, num_queries=8, group_detr=2, dim_feedforward=24)
    spec = make_spec(model__arch=arch, model__rfdetr=rfdetr, dataset__num_classes=None)
    result = fit(spec)
    payload = load_checkpoint(result.latest_path)
    heads = ("enc_score_head.weight", "decoder.class_embed.weight")
    outputs = [tensor.shape[0] for name, tensor in payload["state_dict"].items() if name.endswith(heads)]
    assert outputs == [rows]
    assert payload["rtdetr_tool"]["spec"]["dataset"]["num_classes"] == rows
    opened = open_detector(str(result.latest_path), read_spec(None))
    assert [entry.name for entry in opened.class_map.entries] == ["red", "green"]
    assert opened.spec.dataset.num_classes == rows


@pytest.mark.slow
def test_losses_depend_on_the_seed(make_spec, tmp_path):
    runs = []
    for index, seed in enumerate((3, 3, 4, -1, -1)):
        losses = Losses()
        fit(make_spec(train__seed=seed, train__results_dir=str(tmp_path / str(index))), callbacks=[losses])
        runs.append(losses.values)
    assert runs[0] == runs[1] and len(runs[0]) == 2
    assert runs[0] != runs[2]
    assert runs[3] != runs[4]


def test_a_tiny_batch_can_be_overfitted(make_spec):
    spec = make_spec(train__optim__lr=2e-3, train__optim__lr_backbone=2e-3, model__dn_number=0)
    seed_run(spec.train.seed)
    datamodule = DetectionDataModule(spec)
    module = DetectorModule(spec, datamodule.class_map)
    batch = next(iter(datamodule.train_dataloader()))
    optimizer = module.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(40):
        loss = module.compute_losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]


def test_non_finite_weights_are_not_saved(make_spec):
    class NanWeights(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            with torch.no_grad():
                pl_module.detector.encoder.input_proj[0][0].weight.fill_(float("nan"))

    spec = make_spec()
    with pytest.raises(RtdetrError, match="weights themselves are not finite, so no checkpoint was saved"):
        fit(spec, callbacks=[NanWeights()])
    assert not list(Path(spec.train.results_dir).glob("*.pth"))
