"""A run that is interrupted anywhere and resumed ends with the same state as an uninterrupted one, bit for bit."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.errors import CheckpointError, Preempted
from rtdetr_tool.training.checkpointing import LATEST, find_resume_path, remove_unfinished
from rtdetr_tool.training.fit import fit as fit_and_log

CHANGES = {  # four steps an epoch; all random features are on
    "dataset__batch_size": 2, "train__num_epochs": 3, "train__enable_ema": True, "train__optim__warmup_steps": 5,
    "train__optim__lr": 1e-3, "train__optim__lr_steps": [2], "dataset__augmentation__multi_scales": [32, 64],
    "dataset__augmentation__distortion_prob": 0.8, "dataset__augmentation__iou_crop_prob": 0.8,
    "dataset__augmentation__mosaic_prob": 0.5, "dataset__augmentation__mixup_prob": 0.5,
    "dataset__augmentation__mix_stop_epoch": 2, "model__dropout_ratio": 0.1, "train__validation_interval": 2,
}  # fmt: skip


def fit(spec, **kwargs):
    return fit_and_log(spec, logger=False, **kwargs)


class Signal(pl.Callback):
    """Sends this process a signal at one hook of one epoch and batch."""

    def __init__(self, hook: str, epoch: int, batch: int | None = None, number: int = signal.SIGTERM) -> None:
        self.hook, self.epoch, self.batch, self.number = hook, epoch, batch, number

    def _at(self, hook, trainer, batch=None):
        if (hook, trainer.current_epoch, batch) == (self.hook, self.epoch, self.batch):
            os.kill(os.getpid(), self.number)

    def on_train_epoch_start(self, trainer, pl_module):
        self._at("epoch_start", trainer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._at("batch_start", trainer, batch_idx)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._at("batch_end", trainer, batch_idx)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._at("validation", trainer, batch_idx)

    def on_train_epoch_end(self, trainer, pl_module):
        self._at("epoch_end", trainer)


class Logged(pl.Callback):
    """The losses that each epoch reports."""

    def __init__(self):
        self.epochs: dict[int, dict[str, float]] = {}

    def on_train_epoch_end(self, trainer, pl_module):
        names = ("train_", "val_") if pl_module.validated_epoch == trainer.current_epoch else ("train_",)
        self.epochs[trainer.current_epoch] = {
            name: value.item()
            for name, value in trainer.callback_metrics.items()
            if name.startswith(names) and not name.endswith("_step")
        }


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def assert_same_end(whole: Path, broken: Path, name: str) -> None:
    a, b = load_checkpoint(whole / name), load_checkpoint(broken / name)
    for key in ("state_dict", "ema_state_dict", "raw_state_dict", "optimizer_states", "lr_schedulers", "epoch",
                "global_step", "callbacks"):  # fmt: skip
        assert same(a.get(key), b.get(key)), f"{name}: {key}"
    assert a["rtdetr_tool"]["metrics"] == b["rtdetr_tool"]["metrics"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder and the logged losses of an uninterrupted run, which runs once."""
    result = {}

    def run(make_spec):
        if not result:
            folder = tmp_path_factory.mktemp("uninterrupted")
            logged = Logged()
            fit(make_spec(**CHANGES, train__results_dir=str(folder)), callbacks=[logged])
            result.update(folder=folder, epochs=logged.epochs)
        return result["folder"], result["epochs"]

    return run


@pytest.mark.parametrize(
    ("where", "saved"),
    [
        (("batch_start", 1, 2), "model_epoch_001_step_00007-EMA.pth"),
        pytest.param(("validation", 1, 0), "model_epoch_001_step_00008-EMA.pth", marks=pytest.mark.slow),
        (("epoch_end", 0), "model_epoch_000-EMA.pth"),
        *(
            pytest.param(where, saved, marks=pytest.mark.slow)
            for where, saved in (
                (("batch_start", 0, 0), "model_epoch_000_step_00001-EMA.pth"),
                (("batch_end", 2, 0), "model_epoch_002_step_00009-EMA.pth"),
                (("batch_start", 1, 3), "model_epoch_001_step_00008-EMA.pth"),
                (("epoch_start", 2), "model_epoch_002_step_00009-EMA.pth"),
            )
        ),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_run_ended_by_a_signal_resumes_exactly(make_spec, tmp_path, uninterrupted, where, saved):
    whole, expected = uninterrupted(make_spec)
    spec = make_spec(**CHANGES, train__results_dir=str(tmp_path / "broken"), dataset__workers=int(where[1] == 1))
    before, logged = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)}, Logged()
    with pytest.raises(Preempted, match=r"ended by SIG.* after saving .*run the same command again"):
        number = signal.SIGUSR1 if where[0] == "epoch_end" else signal.SIGTERM
        fit(spec, callbacks=[Signal(*where, number=number), logged])
    assert {n: signal.getsignal(n) for n in before} == before
    folder = Path(spec.train.results_dir)
    assert os.readlink(folder / LATEST) == saved
    torch.manual_seed(99)  # the random state of the process must not matter
    result = fit(spec, callbacks=[logged])
    assert result.resumed_from == folder / saved and result.epochs == 3
    for name in ("model_epoch_002.pth", "model_epoch_002-EMA.pth"):
        assert_same_end(whole, folder, name)
    assert logged.epochs == expected


def test_a_run_killed_between_checkpoints_of_steps_resumes_exactly(make_spec, tmp_path, uninterrupted):
    whole, expected = uninterrupted(make_spec)

    class Kill(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 7:  # the checkpoints of steps 3 and 6 exist
                raise KeyboardInterrupt

    changes = {**CHANGES, "train__checkpoint_interval": 3, "train__checkpoint_interval_unit": "step"}
    spec, logged = make_spec(**changes, train__results_dir=str(tmp_path / "broken")), Logged()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(spec, callbacks=[Kill(), logged])
    result = fit(spec, callbacks=[logged])
    assert result.resumed_from.name == "model_epoch_001_step_00006-EMA.pth"
    assert_same_end(whole, Path(spec.train.results_dir), "model_epoch_002-EMA.pth")
    assert logged.epochs == expected


@pytest.mark.slow
def test_a_signal_waits_for_the_end_of_an_accumulation(make_spec, tmp_path):
    spec = make_spec(**CHANGES, train__results_dir=str(tmp_path / "whole"))
    fit(spec, accumulate_grad_batches=2)
    broken = make_spec(**CHANGES, train__results_dir=str(tmp_path / "broken"))
    with pytest.raises(Preempted):
        fit(broken, callbacks=[Signal("batch_start", 1, 0)], accumulate_grad_batches=2)
    assert os.readlink(tmp_path / "broken" / LATEST) == "model_epoch_001_step_00003-EMA.pth"
    fit(broken, accumulate_grad_batches=2)
    assert_same_end(tmp_path / "whole", tmp_path / "broken", "model_epoch_002-EMA.pth")


def test_resuming_with_another_batch_size_repeats_part_of_a_batch_with_a_warning(make_spec, tmp_path, caplog):
    spec = make_spec(**{**CHANGES, "train__num_epochs": 1}, train__results_dir=str(tmp_path / "run"))
    with pytest.raises(Preempted):
        fit(spec, callbacks=[Signal("batch_start", 0, 2)])  # after 3 batches of 2 images, of 8

    class Seen(pl.Callback):
        sizes: list[int] = []  # noqa: RUF012

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.sizes.append(len(batch))

    changes = {**CHANGES, "train__num_epochs": 1, "dataset__batch_size": 4}
    fit(make_spec(**changes, train__results_dir=str(tmp_path / "run")), callbacks=[Seen()])
    assert Seen.sizes == [4]
    assert "this epoch repeats 2 images" in caplog.text


def test_a_dangling_link_falls_back_to_the_newest_checkpoint(tmp_path, caplog):
    assert find_resume_path(tmp_path) is None
    for name in ("model_epoch_001.pth", "model_epoch_002_step_00010.pth", "model_epoch_002_step_00009-EMA.pth",
                 "model_epoch_002_step_00010-EMA.pth", "model_epoch_x.pth"):  # fmt: skip
        (tmp_path / name).touch()
    (tmp_path / LATEST).symlink_to("model_epoch_007.pth")
    assert find_resume_path(tmp_path).name == "model_epoch_002_step_00010-EMA.pth"
    (tmp_path / "model_epoch_002.pth").touch()
    (tmp_path / LATEST).unlink()
    (tmp_path / LATEST).symlink_to("model_epoch_007.pth")
    assert find_resume_path(tmp_path).name == "model_epoch_002.pth"
    assert "dangling link" in caplog.text


def test_without_the_latest_checkpoint_a_run_starts_from_scratch(make_spec, tmp_path, caplog):
    spec = make_spec(**{**CHANGES, "train__num_epochs": 1}, train__results_dir=str(tmp_path / "run"))
    fit(spec)
    first = (tmp_path / "run" / "model_epoch_000.pth").stat().st_mtime_ns
    (tmp_path / "run" / LATEST).unlink()
    caplog.clear()
    result = fit(spec)
    assert result.resumed_from is None
    assert "was removed, so the run starts from scratch" in caplog.text
    assert (tmp_path / "run" / "model_epoch_000.pth").stat().st_mtime_ns > first
    assert fit(spec).resumed_from.name == "model_epoch_000-EMA.pth"


def test_a_dry_run_checks_the_checkpoint_to_resume_from(make_spec, tmp_path, caplog):
    changes = {**CHANGES, "train__num_epochs": 1, "train__results_dir": str(tmp_path / "run")}
    path = "train__resume_training_checkpoint_path"
    with pytest.raises(CheckpointError, match=r"gone\.pth"):
        fit(make_spec(**changes, train__is_dry_run=True, **{path: str(tmp_path / "gone.pth")}))
    fit(make_spec(**changes))
    file = str(tmp_path / "run" / "model_epoch_000.pth")
    fit(make_spec(**changes, train__is_dry_run=True, **{path: file}))
    assert f"The run would resume from {file}" in caplog.text
    with pytest.raises(CheckpointError, match="dec_layers"):
        fit(make_spec(**changes, train__is_dry_run=True, model__dec_layers=3, **{path: file}))


def test_only_unfinished_files_of_a_killed_run_are_removed(tmp_path):
    leftovers = [".model_epoch_003.ab.pth", ".model_epoch_003_step_00010-EMA.x_y.pth", ".rtdetr_model_latest.pth.7.tmp",
                 ".status.ql4_tp1.json", ".experiment.a8.yaml"]  # fmt: skip
    kept = ["model_epoch_003.pth", ".status.json.reserve", ".notes.pth", ".run.lock", "rtdetr_model_best.pth"]
    for name in (*leftovers, *kept):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


@pytest.fixture(autouse=True)
def logs(caplog):
    caplog.set_level(logging.INFO)
