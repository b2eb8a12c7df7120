"""Optimizers and schedules of torch by dotted name, and what decides the best checkpoint."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec.metric_names import best_score_name
from rtdetr_tool.training import DetectionDataModule, DetectorModule, build_trainer
from rtdetr_tool.training.callbacks.early_stopping import EarlyStopping
from rtdetr_tool.training.callbacks.periodic_checkpoint import checkpoints_of
from rtdetr_tool.training.fit import fit

EXPONENTIAL = {"train__optim__lr_scheduler": "torch.optim.lr_scheduler.ExponentialLR"}


class Rates(pl.Callback):
    """The learning rate of each step."""

    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


def rates_of(spec):
    callback = Rates()
    fit(spec, callbacks=[callback])
    return [rate / callback.rates[0] for rate in callback.rates]


def test_an_optimizer_by_dotted_name_keeps_the_rates_and_decays_of_the_groups(make_spec):
    spec = make_spec(
        train__optim__optimizer="torch.optim.RAdam", train__optim__optimizer_kwargs={"betas": [0.8, 0.9], "eps": 1e-6}
    )
    module = DetectorModule(spec, DetectionDataModule(spec).class_map)
    optimizer = module.configure_optimizers()["optimizer"]
    assert type(optimizer) is torch.optim.RAdam
    expected = {group["name"]: (group["lr"], group["weight_decay"]) for group in module.parameter_groups()}
    assert {group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == expected
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {((0.8, 0.9), 1e-6)}


def test_keywords_of_the_default_optimizer_take_precedence(make_spec):
    spec = make_spec(train__optim__optimizer_kwargs={"betas": [0.5, 0.6], "amsgrad": True})
    module = DetectorModule(spec, DetectionDataModule(spec).class_map)
    group = module.configure_optimizers()["optimizer"].param_groups[0]
    assert group["betas"] == (0.5, 0.6) and group["amsgrad"]


@pytest.mark.slow
def test_a_schedule_by_dotted_name_advances_per_step_or_epoch(make_spec, tmp_path):
    changes = {**EXPONENTIAL, "train__optim__lr_scheduler_kwargs": {"gamma": 0.5}, "train__num_epochs": 2}
    per_step = make_spec(**changes, train__results_dir=str(tmp_path / "step"))
    assert rates_of(per_step) == pytest.approx([1, 0.5, 0.25, 0.125])
    per_epoch = make_spec(
        **changes, train__results_dir=str(tmp_path / "epoch"), train__optim__lr_scheduler_interval="epoch"
    )
    assert rates_of(per_epoch) == pytest.approx([1, 1, 0.5, 0.5])


def test_a_schedule_by_dotted_name_follows_a_warmup(make_spec):
    spec = make_spec(
        **EXPONENTIAL, train__optim__lr_scheduler_kwargs={"gamma": 0.5}, train__num_epochs=2,
        train__optim__warmup_steps=2,
    )  # fmt: skip
    assert rates_of(spec) == pytest.approx([1, 2, 2, 1])


def test_a_schedule_can_follow_a_metric(make_spec):
    spec = make_spec(
        train__num_epochs=3, train__optim__lr_scheduler="torch.optim.lr_scheduler.ReduceLROnPlateau",
        train__optim__lr_scheduler_kwargs={"factor": 0.5, "patience": 0, "threshold": 1e9, "threshold_mode": "abs"},
        train__optim__lr_scheduler_monitor="val_mAP",
    )  # fmt: skip
    assert rates_of(spec) == pytest.approx([1, 1, 1, 1, 0.5, 0.5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__optim__optimizer": "torch.optim.Lion"}, "train.optim.optimizer: .*RAdam"),
        ({"train__optim__lr_scheduler": "torch.optim.lr_scheduler.Adam"}, "train.optim.lr_scheduler: .*OneCycleLR"),
        ({"train__optim__optimizer_kwargs": {"nothing": 1}}, "optimizer_kwargs: .*nothing"),
        ({**EXPONENTIAL}, "lr_scheduler_kwargs: .*gamma"),
        (
            {**EXPONENTIAL, "train__optim__lr_scheduler_kwargs": {"gamma": 0.9}, "train__optim__warmup_steps": 3,
             "train__optim__lr_scheduler_interval": "epoch"},
            "warmup_steps",
        ),
    ],
)  # fmt: skip
def test_what_torch_does_not_accept_is_a_spec_error(make_spec, changes, message):
    with pytest.raises(SpecError, match=message):
        fit(make_spec(**changes))


@pytest.mark.parametrize(("metric", "name"), [("mAP", "val/mAP_50_95"), ("mAR", "val/mAR")])
def test_the_best_checkpoint_follows_the_metric(make_spec, metric, name):
    assert checkpoints_of(build_trainer(make_spec(train__best_metric=metric))).monitor == name
    assert best_score_name(metric, "masks") == name.replace("val/", "val/segm_")


def test_the_first_epochs_can_be_excluded_from_the_best(make_spec):
    result = fit(make_spec(train__num_epochs=3, train__skip_best_epochs=2))
    assert result.best_epoch == 2
    callback = EarlyStopping(patience=1, skip_epochs=1)
    trainer = SimpleNamespace(
        callback_metrics={"val/mAP_50_95": torch.tensor(0.9)}, state=SimpleNamespace(fn="fit"), callbacks=[],
        sanity_checking=False, current_epoch=0,
    )  # fmt: skip
    callback.on_validation_end(trainer, None)
    assert callback.best is None


def test_a_run_can_validate_a_few_batches_first(make_spec):
    class Seen(pl.Callback):
        batches = 0

        def on_validation_batch_end(self, trainer, *args):
            self.batches += trainer.sanity_checking

    seen = Seen()
    assert fit(make_spec(train__num_sanity_val_steps=1), callbacks=[seen]).best_epoch == 0
    assert seen.batches == 1
