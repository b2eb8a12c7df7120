"""Non-finite losses and gradients are reported, do not reach the weights, and stop the run or are skipped."""

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


class NanImages(pl.Callback):
    """Makes the images of some steps non-finite after augmentation."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        original = type(pl_module).prepare_images
        pl_module.prepare_images = lambda batch, multi_scale: (
            original(pl_module, batch, multi_scale)
            * (float("nan") if pl_module.training and trainer.global_step in self.steps else 1.0)
        )


class InfiniteGradient(pl.Callback):
    """Makes one gradient of some steps infinite after a finite loss."""

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
        tensors = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
        states = trainer.optimizers[0].state_dict()["state"]
        return tensors | {f"{i}.{k}": torch.as_tensor(v).clone() for i, s in states.items() for k, v in s.items()}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before.append(self._state(trainer, pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.after.append(self._state(trainer, pl_module))


def unchanged(weights: Weights) -> list[int]:
    """Steps that did not change anything."""
    pairs = list(zip(weights.before, weights.after, strict=True))
    return [i for i, (a, b) in enumerate(pairs) if a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)]


def all_finite(path: Path) -> bool:
    payload = load_checkpoint(path)
    tensors = [t for key in ("state_dict", "ema_state_dict", "raw_state_dict") for t in payload.get(key, {}).values()]
    tensors += [v for s in payload["optimizer_states"][0]["state"].values() for v in s.values() if torch.is_tensor(v)]
    return all(torch.isfinite(tensor).all() for tensor in tensors)


@pytest.mark.parametrize("fault", [NanImages, InfiniteGradient])
def test_a_run_stops_by_default_with_what_is_needed_to_find_the_cause(make_spec, fault):
    spec, folder = make_spec(**CHANGES), None
    with pytest.raises(RtdetrError) as raised:
        fit(spec, callbacks=[fault(5)], logger=False)
    message, folder = str(raised.value), Path(spec.train.results_dir)
    what = "loss" if fault is NanImages else "gradient"
    assert message.startswith(f"The {what} of step 5 (epoch 1) is not finite: loss ")
    assert len(re.findall(r"\d \(/\S+\.png\)", message)) == 2
    assert "largest logit " in message and "largest box value " in message and "main 0.001" in message
    assert "train.optim.lr" in message and "train.non_finite_loss: skip" in message
    assert (" not finite), " in message) == (fault is NanImages)
    saved = "model_epoch_001_step_00005-EMA.pth" if fault is NanImages else "model_epoch_001_step_00006-EMA.pth"
    assert f"saved in {folder / saved}" in message and os.readlink(folder / LATEST) == saved
    assert all(all_finite(file) for file in folder.glob("model_*.pth"))


def test_a_stopped_run_resumes_where_it_stopped(make_spec, tmp_path):
    whole = make_spec(**CHANGES, train__results_dir=str(tmp_path / "whole"))
    fit(whole, logger=False)
    spec = make_spec(**CHANGES)
    with pytest.raises(RtdetrError):
        fit(spec, callbacks=[NanImages(5)], logger=False)
    fit(spec, logger=False)
    a, b = (load_checkpoint(Path(s.train.results_dir, "model_epoch_001.pth"))["state_dict"] for s in (whole, spec))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("fault", [NanImages, InfiniteGradient])
def test_skipped_steps_leave_the_state_unchanged_and_are_counted(make_spec, caplog, fault):
    caplog.set_level(logging.INFO)
    weights = Weights()
    spec = make_spec(**CHANGES, train__non_finite_loss="skip")
    result = fit(spec, callbacks=[fault(2, 4, 6), weights], logger=False)
    assert result.epochs == 2 and torch.isfinite(torch.tensor(result.metrics["train/loss"]))
    same = unchanged(weights)
    if fault is NanImages:
        assert same == [2, 4, 6]
    else:  # statistics change, because the forward pass was finite
        learned = [n for n in weights.before[3] if "running" not in n and "num_batches" not in n]
        frozen = [i for i in range(8) if all(
            n in weights.before[i] and torch.equal(weights.before[i][n], weights.after[i][n]) for n in learned
        )]  # fmt: skip
        assert frozen == [2, 4, 6]
    assert "Skipping this step (train.non_finite_loss: skip); 3 skipped so far" in caplog.text
    assert "3 steps skipped since the start" in caplog.text
    assert all(all_finite(file) for file in Path(spec.train.results_dir).glob("model_*.pth"))


def test_a_run_stops_after_too_many_skipped_steps(make_spec, monkeypatch):
    monkeypatch.setattr(step_guard, "MAX_SKIPPED_IN_A_ROW", 3)
    spec = make_spec(**CHANGES, train__non_finite_loss="skip")
    with pytest.raises(RtdetrError, match=r"step 4 .*3 steps in a row were skipped"):
        fit(spec, callbacks=[NanImages(*range(2, 100))], logger=False)


def test_the_first_step_may_be_non_finite(make_spec):
    spec = make_spec(**CHANGES)
    with pytest.raises(RtdetrError, match=r"step 0 \(epoch 0\).*model_epoch_000_step_00000-EMA\.pth"):
        fit(spec, callbacks=[NanImages(0)], logger=False)
    assert fit(spec, logger=False).epochs == 2
