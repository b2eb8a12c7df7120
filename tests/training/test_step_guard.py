"""Losses and gradients that are not finite: named, kept from the weights, and answered as the spec says."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.training import step_guard
from rtdetr_tool.training.checkpointing import LATEST
from rtdetr_tool.training.fit import fit

CHANGES = {
    "model__backbone": "timm/test_resnet", "dataset__batch_size": 2, "train__num_epochs": 2, "train__enable_ema": True,
    "train__optim__lr": 1e-3,
}  # fmt: skip


class Spoil(pl.Callback):
    """Makes the images of some steps not finite, after augmentation."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        original = type(pl_module).prepare_images
        pl_module.prepare_images = lambda batch, multi_scale: original(pl_module, batch, multi_scale) * (
            float("nan") if pl_module.training and trainer.global_step in self.steps else 1.0
        )


class SpoilGradient(pl.Callback):
    """Makes one gradient of some steps infinite, after the loss was found to be finite."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step in self.steps:
            pl_module.detector.decoder.dec_score_head[0].weight.grad[0, 0] = float("inf")


class Weights(pl.Callback):
    """Weights and optimizer state before and after each step."""

    def __init__(self):
        self.before, self.after = [], []

    def _state(self, trainer, pl_module):
        own = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
        states = trainer.optimizers[0].state_dict()["state"]
        return own | {f"{i}.{k}": torch.as_tensor(v).clone() for i, s in states.items() for k, v in s.items()}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before.append(self._state(trainer, pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.after.append(self._state(trainer, pl_module))


def unchanged(weights: Weights) -> list[int]:
    """Steps that left everything as it was."""
    pairs = list(zip(weights.before, weights.after, strict=True))
    return [i for i, (a, b) in enumerate(pairs) if a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)]


def all_finite(path: Path) -> bool:
    payload = load_checkpoint(path)
    tensors = [t for key in ("state_dict", "ema_state_dict", "raw_state_dict") for t in payload.get(key, {}).values()]
    tensors += [v for s in payload["optimizer_states"][0]["state"].values() for v in s.values() if torch.is_tensor(v)]
    return all(torch.isfinite(tensor).all() for tensor in tensors)


@pytest.mark.parametrize("spoil", [Spoil, SpoilGradient])
def test_a_run_stops_by_default_and_says_what_is_needed_to_find_the_cause(make_spec, spoil):
    spec, folder = make_spec(**CHANGES), None
    with pytest.raises(RtdetrError) as raised:
        fit(spec, callbacks=[spoil(5)], logger=False)
    message, folder = str(raised.value), Path(spec.train.results_dir)
    what = "loss" if spoil is Spoil else "gradient"
    assert message.startswith(f"The {what} of step 5 (epoch 1) is not finite: loss ")
    assert len(re.findall(r"\d \(/\S+\.png\)", message)) == 2
    assert "largest logit " in message and "largest box value " in message and "main 0.001" in message
    assert "train.optim.lr" in message and "train.non_finite_loss: skip" in message
    assert (" not finite), " in message) == (spoil is Spoil)
    saved = "model_epoch_001_step_00005-EMA.pth" if spoil is Spoil else "model_epoch_001_step_00006-EMA.pth"
    assert f"saved in {folder / saved}" in message and os.readlink(folder / LATEST) == saved
    assert all(all_finite(file) for file in folder.glob("model_*.pth"))


def test_a_stopped_run_goes_on_where_it_stopped(make_spec, tmp_path):
    whole = make_spec(**CHANGES, train__results_dir=str(tmp_path / "whole"))
    fit(whole, logger=False)
    spec = make_spec(**CHANGES)
    with pytest.raises(RtdetrError):
        fit(spec, callbacks=[Spoil(5)], logger=False)
    fit(spec, logger=False)
    a, b = (load_checkpoint(Path(s.train.results_dir, "model_epoch_001.pth"))["state_dict"] for s in (whole, spec))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("spoil", [Spoil, SpoilGradient])
def test_skipping_leaves_weights_statistics_and_optimizer_untouched_and_counts(make_spec, caplog, spoil):
    caplog.set_level(logging.INFO)
    weights = Weights()
    spec = make_spec(**CHANGES, train__non_finite_loss="skip")
    result = fit(spec, callbacks=[spoil(2, 4, 6), weights], logger=False)
    assert result.epochs == 2 and torch.isfinite(torch.tensor(result.metrics["train_loss"]))
    same = unchanged(weights)
    if spoil is Spoil:
        assert same == [2, 4, 6]
    else:  # the statistics have moved: the forward pass was right
        learned = [n for n in weights.before[3] if "running" not in n and "num_batches" not in n]
        frozen = [i for i in range(8) if all(
            n in weights.before[i] and torch.equal(weights.before[i][n], weights.after[i][n]) for n in learned
        )]  # fmt: skip
        assert frozen == [2, 4, 6]
    assert "The step is left out (train.non_finite_loss: skip); 3 so far" in caplog.text
    assert "3 steps left out since the start" in caplog.text
    assert all(all_finite(file) for file in Path(spec.train.results_dir).glob("model_*.pth"))


def test_a_run_that_only_skips_stops(make_spec, monkeypatch):
    monkeypatch.setattr(step_guard, "MOST_IN_A_ROW", 3)
    spec = make_spec(**CHANGES, train__non_finite_loss="skip")
    with pytest.raises(RtdetrError, match=r"step 4 .*3 steps in a row were left out"):
        fit(spec, callbacks=[Spoil(*range(2, 100))], logger=False)


def test_the_first_step_of_all_may_be_the_bad_one(make_spec):
    spec = make_spec(**CHANGES)
    with pytest.raises(RtdetrError, match=r"step 0 \(epoch 0\).*model_epoch_000_step_00000-EMA\.pth"):
        fit(spec, callbacks=[Spoil(0)], logger=False)
    assert fit(spec, logger=False).epochs == 2
