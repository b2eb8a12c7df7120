"""The fields of `train` take effect, and module, data module and trainer work on their own."""

from __future__ import annotations

import contextlib
import csv
import logging
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from rtdetr_tool.errors import SpecError, UserError
from rtdetr_tool.ops import onednn
from rtdetr_tool.training.callbacks.ema import ExponentialMovingAverage
from rtdetr_tool.training.callbacks.periodic_checkpoint import PeriodicCheckpoint
from rtdetr_tool.training.datamodule import DetectionDataModule
from rtdetr_tool.training.devices import choose_devices, log_device
from rtdetr_tool.training.module import DetectorModule
from rtdetr_tool.training.trainer import build_trainer, check_precision, choose_strategy, seed_run


class Watch(pl.Callback):
    """Records learning rates, gradient norms and losses of each step."""

    def __init__(self):
        self.rates: list[dict[str, float]] = []
        self.norms: list[float] = []
        self.losses: list[float] = []
        self.sizes: list[tuple[int, ...]] = []
        self.validations: list[int] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if gradients:
            self.norms.append(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients])).item())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())

    def on_validation_epoch_end(self, trainer, pl_module):
        self.validations.append(trainer.current_epoch)


def run(spec, **trainer_kwargs) -> tuple[DetectorModule, Watch, pl.Trainer]:
    seed_run(spec.train.seed)
    datamodule = DetectionDataModule(spec)
    datamodule.setup("fit")
    module, watch = DetectorModule(spec, datamodule.class_map), Watch()
    trainer = build_trainer(spec, callbacks=[watch], **trainer_kwargs)
    trainer.fit(module, datamodule)
    return module, watch, trainer


def test_the_backbone_has_its_own_learning_rate(make_spec):
    module, watch, _ = run(make_spec(train__optim__lr=3e-4, train__optim__lr_backbone=2e-5))
    assert watch.rates[0]["backbone"] == pytest.approx(2e-5) and watch.rates[0]["main"] == pytest.approx(3e-4)
    groups = module.optimizers().param_groups
    grouped = {id(p) for group in groups if group["name"].startswith("backbone") for p in group["params"]}
    assert grouped == {id(p) for p in module.detector.backbone.parameters()}
    everything = [id(p) for group in groups for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in module.parameters() if p.requires_grad)


def test_norms_of_a_real_detector_are_not_decayed(make_spec):
    module, _, _ = run(make_spec(), max_steps=1)
    undecayed = {id(p) for g in module.optimizers().param_groups if g["weight_decay"] == 0 for p in g["params"]}
    names = ("encoder.input_proj.0.1.weight", "decoder.enc_output.1.weight", "decoder.input_proj.0.norm.bias")
    parameters = dict(module.detector.named_parameters())
    assert all(id(parameters[name]) in undecayed for name in names)
    assert id(parameters["decoder.enc_score_head.weight"]) not in undecayed


def test_linear_projections_learn_at_the_multiplied_rate(make_spec):
    _, watch, _ = run(make_spec(train__optim__lr=1e-3, train__optim__lr_linear_proj_mult=0.1), max_steps=1)
    assert watch.rates[0]["linear_proj"] == pytest.approx(1e-4)


def test_warmup_and_decay_change_the_learning_rate(make_spec, caplog):
    caplog.set_level(logging.INFO)
    spec = make_spec(
        train__num_epochs=3, train__optim__lr=1e-3, train__optim__warmup_steps=2, train__verbose=True,
        train__optim__lr_scheduler="StepLR", train__optim__lr_step_size=2, train__optim__lr_decay=0.5,
    )  # fmt: skip
    _, watch, _ = run(spec)
    assert [rates["main"] for rates in watch.rates] == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3, 5e-4, 5e-4])
    assert "Learning rate" in caplog.text


def test_multistep_uses_the_epochs_of_the_spec(make_spec):
    _, watch, _ = run(make_spec(train__num_epochs=2, train__optim__lr_steps=[1], train__optim__lr_decay=0.1))
    assert watch.rates[-1]["main"] == pytest.approx(0.1 * watch.rates[0]["main"])


@pytest.mark.parametrize("limit", [0.05, 0.0])
def test_the_gradient_is_clipped_unless_the_limit_is_zero(make_spec, limit):
    _, watch, _ = run(make_spec(train__clip_grad_norm=limit))
    assert max(watch.norms) <= 0.0501 if limit else min(watch.norms) > 1


def test_sgd_uses_the_momentum_of_the_spec(make_spec):
    sgd, _, _ = run(make_spec(train__optim__optimizer="SGD", train__optim__momentum=0.8), max_steps=1)
    assert isinstance(sgd.optimizers().optimizer, torch.optim.SGD)
    assert sgd.optimizers().param_groups[0]["momentum"] == 0.8


def test_validation_interval_and_epochs_take_effect(make_spec):
    _, watch, trainer = run(make_spec(train__num_epochs=4, train__validation_interval=2))
    assert watch.validations == [1, 3] and trainer.current_epoch == 4


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_reaches_the_layers(make_spec, precision, dtype):
    seen = []
    spec = make_spec(train__precision=precision)
    datamodule = DetectionDataModule(spec)
    datamodule.setup("fit")
    module = DetectorModule(spec, datamodule.class_map)
    module.detector.encoder.input_proj[0][0].register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    build_trainer(spec, max_steps=1, limit_val_batches=0).fit(module, datamodule)
    assert set(seen) == {dtype}
    assert all(p.dtype == torch.float32 for p in module.parameters())


def test_fp16_on_a_cpu_is_refused_with_an_alternative():
    with pytest.raises(SpecError, match="bf16"):
        check_precision("fp16", "cpu")


def test_frozen_parts_do_not_change_including_statistics(make_spec):
    spec = make_spec(train__freeze=["backbone", "encoder.input_proj"], train__optim__lr=1e-2)
    datamodule = DetectionDataModule(spec)
    datamodule.setup("fit")
    module = DetectorModule(spec, datamodule.class_map)
    before = {name: tensor.clone() for name, tensor in module.detector.state_dict().items()}
    build_trainer(spec).fit(module, datamodule)
    frozen = ("backbone.", "encoder.input_proj.")
    for name, tensor in module.detector.state_dict().items():
        if name.startswith(frozen):
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(module.detector.state_dict()["encoder.fpn_blocks.0.conv1.conv.weight"],
                           before["encoder.fpn_blocks.0.conv1.conv.weight"])  # fmt: skip


def test_freezing_an_unknown_module_is_refused_with_a_suggestion(make_spec):
    spec = make_spec(train__freeze=["decodr"])
    datamodule = DetectionDataModule(spec)
    datamodule.setup("fit")
    with pytest.raises(UserError, match="decoder"):
        DetectorModule(spec, datamodule.class_map)


def test_activation_checkpointing_changes_memory_not_results(make_spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without a results_dir, files are written to the current folder
    plain, _, _ = run(make_spec(train__activation_checkpoint=False))
    saved, _, _ = run(make_spec(train__activation_checkpoint=True, train__results_dir=None), logger=False)
    assert saved.detector.backbone.activation_checkpoint
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(saved.state_dict()[name], tensor, atol=1e-6, rtol=1e-5, msg=name)


def test_recomputed_norms_change_nothing_about_a_run(make_spec):
    plain, _, _ = run(make_spec(), logger=False)
    saved, _, _ = run(make_spec(train__recompute_norms=True), logger=False)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(saved.state_dict()[name], tensor), name


def test_multi_scale_changes_the_size_of_whole_steps(make_spec):
    spec = make_spec(dataset__augmentation__multi_scales=[32, [64, 96], 96], train__num_epochs=8)
    datamodule = DetectionDataModule(spec)
    datamodule.setup("fit")
    module = DetectorModule(spec, datamodule.class_map)
    training, evaluating = [], []
    module.detector.backbone.register_forward_pre_hook(
        lambda m, args: (training if m.training else evaluating).append(tuple(args[0].shape[-2:]))
    )
    build_trainer(spec).fit(module, datamodule)
    assert set(training) == {(32, 32), (64, 96), (96, 96)} and set(evaluating) == {(64, 64)}


def test_the_last_epochs_train_at_the_size_of_validation(make_spec):
    scales = {"multi_scales": [32, 96], "no_aug_epochs": 2, "eval_spatial_size": [64, 96]}
    spec = make_spec(train__num_epochs=5, **{f"dataset__augmentation__{name}": value for name, value in scales.items()})
    datamodule = DetectionDataModule(spec)
    datamodule.setup("fit")
    module = DetectorModule(spec, datamodule.class_map)
    sizes: dict[int, set[tuple[int, int]]] = {}

    def record(backbone, args):
        if backbone.training:
            sizes.setdefault(module.current_epoch, set()).add(tuple(args[0].shape[-2:]))

    module.detector.backbone.register_forward_pre_hook(record)
    build_trainer(spec).fit(module, datamodule)
    assert set().union(*(sizes[epoch] for epoch in range(3))) == {(32, 32), (96, 96)}
    assert sizes[3] == sizes[4] == {(64, 96)}


def test_ema_settings_reach_the_callback(make_spec):
    spec = make_spec(
        train__enable_ema=True, train__ema__decay=0.5, train__ema__every_n_steps=3,
        train__ema__validate_original_weights=True, train__ema__cpu_offload=True,
    )  # fmt: skip
    (ema,) = [c for c in build_trainer(spec).callbacks if isinstance(c, ExponentialMovingAverage)]
    assert (ema.decay, ema.every_n_steps, ema.validate_original_weights, ema.cpu_offload) == (0.5, 3, True, True)
    assert not [c for c in build_trainer(make_spec()).callbacks if isinstance(c, ExponentialMovingAverage)]


def test_cudnn_settings_reach_torch(make_spec):
    for value in (True, False):
        build_trainer(make_spec(train__cudnn__deterministic=value, train__cudnn__benchmark=value))
        assert torch.backends.cudnn.deterministic is value and torch.backends.cudnn.benchmark is value


def test_user_callbacks_are_added_and_keywords_take_precedence(make_spec):
    watch = Watch()
    trainer = build_trainer(make_spec(train__num_epochs=5), callbacks=watch, max_epochs=2)
    kinds = [type(callback) for callback in trainer.callbacks]
    assert watch in trainer.callbacks and PeriodicCheckpoint in kinds and trainer.max_epochs == 2


def test_a_users_progress_bar_replaces_the_built_in_one(make_spec):
    from pytorch_lightning.callbacks import TQDMProgressBar

    trainer = build_trainer(make_spec(), callbacks=[TQDMProgressBar()])
    assert isinstance(trainer.progress_bar_callback, TQDMProgressBar)


def test_module_and_datamodule_validate_test_and_predict(make_spec):
    spec = make_spec()
    datamodule = DetectionDataModule(spec)
    module = DetectorModule(spec, datamodule.class_map)
    trainer = build_trainer(spec)
    (validated,) = trainer.validate(module, datamodule, verbose=False)
    (tested,) = trainer.test(module, datamodule, verbose=False)
    assert {"val/mAP_50_95", "val/mAP_50", "val/loss"} <= set(validated)
    assert {name.replace("val/", "test/") for name in validated} == set(tested)
    predicted = trainer.predict(module, datamodule.val_dataloader())
    assert [len(batch) for batch in predicted] == [3] and len(predicted[0][0].scores) == 10


def test_callbacks_get_the_detections_of_validation_and_test_batches(make_spec):
    class Seen(pl.Callback):
        outputs = ()

        def on_validation_batch_end(self, trainer, pl_module, outputs, *args):
            self.outputs = (*self.outputs, outputs)

        on_test_batch_end = on_validation_batch_end

    spec, seen = make_spec(), Seen()
    datamodule = DetectionDataModule(spec)
    module, trainer = DetectorModule(spec, datamodule.class_map), build_trainer(spec, callbacks=[seen])
    trainer.validate(module, datamodule, verbose=False)
    trainer.test(module, datamodule, verbose=False)
    assert len(seen.outputs) == 2
    for output in seen.outputs:
        assert [target.image_id for target in output["targets"]] == [1, 2, 3]
        assert [len(detections) for detections in output["results"]] == [10, 10, 10]


def test_metrics_are_logged_by_phase_and_name(make_spec):
    spec = make_spec(train__num_epochs=2)
    run(spec, log_every_n_steps=1)
    file = Path(spec.train.results_dir, "csv_logs", "version_0", "metrics.csv")
    rows = list(csv.DictReader(file.read_text().splitlines()))
    expected = {"train/loss", "train/loss_step", "train/loss_vfl", "train/loss_bbox", "train/loss_giou", "train/lr"}
    expected |= {"val/loss", "val/loss_vfl", "val/mAP_50_95", "val/mAP_50", "epoch", "step"}
    assert expected <= set(rows[0]) and not any("_mAP" in name for name in rows[0])
    assert list(Path(spec.train.results_dir, "lightning_logs", "version_0").glob("events.*"))


def test_gpu_ids_are_used_and_checked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_devices(2, [2, 3]) == ("gpu", [2, 3])
    assert choose_devices(1, [3]) == ("gpu", [3])
    with pytest.raises(SpecError, match=r"gpu_ids: \[4\] .*4 GPU"):
        choose_devices(1, [4])
    with pytest.raises(SpecError, match=r"gpu_ids: expected num_gpus=2 items, but got 1"):
        choose_devices(2, [0])
    assert choose_devices(2, [2, 3], "cpu") == ("cpu", 2)


def test_without_a_gpu_the_cpu_is_used_with_a_log_line(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_devices(2, [0, 1]) == ("cpu", 2) and not caplog.text
    log_device("auto", "cpu", 2)
    assert "No GPU available; running on the CPU with 2 processes" in caplog.text
    with pytest.raises(SpecError, match="accelerator: gpu requires a CUDA GPU"):
        choose_devices(1, [0], "gpu")


def test_several_processes_need_a_strategy():
    assert isinstance(choose_strategy("fsdp", True, "gpu"), FSDPStrategy)
    assert isinstance(choose_strategy("ddp", True, "cpu"), DDPStrategy)
    assert choose_strategy("ddp", False, "gpu") == choose_strategy("fsdp", False, "gpu") == "auto"
    assert choose_strategy("deepspeed_stage_2", True, "gpu") == "deepspeed_stage_2"
    assert isinstance(choose_strategy("fsdp", True, "cpu"), FSDPStrategy)


@pytest.mark.parametrize(("accelerator", "lines"), [("gpu", 1), ("cpu", 0)])
def test_a_run_on_a_gpu_logs_one_line_about_slow_settings(make_spec, monkeypatch, caplog, accelerator, lines):
    monkeypatch.setattr("rtdetr_tool.training.trainer.choose_devices", lambda *args: (accelerator, 1))
    with caplog.at_level(logging.INFO), contextlib.suppress(MisconfigurationException):  # there is no GPU
        build_trainer(make_spec(), logger=False)
    messages = [record.getMessage() for record in caplog.records if "slow down" in record.getMessage()]
    assert len(messages) == lines
    assert all("train.precision=fp32" in message and "train.preset" in message for message in messages)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_on_a_cpu_computes_its_products_with_onednn(make_spec, monkeypatch, recompute):
    monkeypatch.setattr(onednn, "_SMALLEST", 0)
    products = []
    compute = onednn._product
    monkeypatch.setattr(onednn, "_product", lambda *args: products.append(args) or compute(*args))
    backbone = {"model__backbone": "timm/test_convnext", "train__activation_checkpoint": recompute}
    run(make_spec(**backbone))
    assert products
