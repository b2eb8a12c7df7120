"""Sharded strategies: callbacks that do not work with them are skipped with a warning."""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy
from torch.torch_version import TorchVersion

from rtdetr_tool.errors import CheckpointError, SpecError
from rtdetr_tool.training.callbacks.ema import ExponentialMovingAverage, average_of
from rtdetr_tool.training.callbacks.periodic_checkpoint import PeriodicCheckpoint
from rtdetr_tool.training.callbacks.preemption import PreemptionSave
from rtdetr_tool.training.checkpointing import SafeCheckpointIO
from rtdetr_tool.training.datamodule import DetectionDataModule
from rtdetr_tool.training.module import DetectorModule
from rtdetr_tool.training.sharding import SafeFSDP, callbacks_for, sharding_of
from rtdetr_tool.training.trainer import build_trainer, built_in_callbacks

FOLDERS = (PeriodicCheckpoint, PreemptionSave)  # need checkpoint files


def kinds(callbacks):
    return {type(callback) for callback in callbacks}


@pytest.mark.parametrize(
    ("strategy", "sharding"),
    [
        ("fsdp", "fsdp"), ("fsdp_cpu_offload", "fsdp"), ("deepspeed", "deepspeed"), ("deepspeed_stage_3", "deepspeed"),
        (SafeFSDP(), "fsdp"), (FSDPStrategy(), "fsdp"), ("ddp", None), ("auto", None), (DDPStrategy(), None),
    ],
)  # fmt: skip
def test_sharded_strategies_are_recognized_by_name_and_by_object(strategy, sharding):
    assert sharding_of(strategy) == sharding


def test_fsdp_skips_ema_with_one_warning(make_spec, caplog):
    spec = make_spec(train__enable_ema=True)
    plain, shared = build_trainer(spec, logger=False), build_trainer(spec, logger=False, strategy=SafeFSDP())
    assert isinstance(shared.strategy, FSDPStrategy)
    assert kinds(plain.callbacks) - kinds(shared.callbacks) == {ExponentialMovingAverage}
    messages = [record.getMessage() for record in caplog.records if record.name == "rtdetr_tool.training.sharding"]
    assert len(messages) == 1
    assert messages[0].startswith("Skipping ExponentialMovingAverage with fsdp: no process has the whole weights")
    assert shared.gradient_clip_val == spec.train.clip_grad_norm  # FSDP clips by the norm of all shards


@pytest.mark.parametrize(
    ("version", "precision", "message"),
    [
        ("2.15.0", "bf16", r"train\.precision: bf16 is not supported with fsdp on a CPU; use fp32"),
        ("2.11.0+cpu", "fp32", r"fsdp is not supported on CPUs with PyTorch 2\.11\.0\+cpu.*use ddp, or PyTorch 2\.15"),
    ],
)
def test_fsdp_on_a_cpu_is_refused_where_it_would_crash_or_ignore_the_precision(
    make_spec, monkeypatch, version, precision, message
):
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    spec = make_spec(train__precision=precision, train__num_gpus=2, train__gpu_ids=[0, 1])
    with pytest.raises(SpecError, match=message):
        build_trainer(spec, strategy="fsdp")


def test_unsupported_user_callbacks_are_skipped_too(make_spec, caplog):
    callback = ExponentialMovingAverage(0.9)
    trainer = build_trainer(make_spec(), logger=False, strategy=SafeFSDP(), callbacks=[callback])
    assert average_of(trainer) is None and "with fsdp" in caplog.text


@pytest.mark.parametrize("strategy", ["deepspeed_stage_2", SafeFSDP(state_dict_type="sharded")])
def test_checkpoints_in_folders_are_written_by_lightning(make_spec, tmp_path, caplog, strategy):
    callbacks = built_in_callbacks(make_spec(train__enable_ema=True), tmp_path)
    kept = callbacks_for(strategy, callbacks)
    assert kinds(callbacks) - kinds(kept) == {ExponentialMovingAverage, *FOLDERS}
    assert caplog.text.count("checkpoints are folders that only it can read; use Lightning's ModelCheckpoint") == 2
    if not isinstance(strategy, str):  # DeepSpeed itself is not installed
        trainer = build_trainer(make_spec(), logger=False, strategy=strategy)
        assert ModelCheckpoint in kinds(trainer.callbacks) and not kinds(trainer.callbacks) & set(FOLDERS)


def test_deepspeed_cannot_skip_steps(make_spec):
    with pytest.raises(SpecError, match=r"train\.non_finite_loss: skip is not supported by DeepSpeed.*use stop"):
        build_trainer(make_spec(train__non_finite_loss="skip"), strategy="deepspeed")


def test_weight_decay_applies_to_the_same_weights_when_sharded(make_spec):
    def groups(module):
        names = {id(parameter): name for name, parameter in module.detector.named_parameters()}
        return {group["name"]: [names[id(p)] for p in group["params"]] for group in module.parameter_groups()}

    spec = make_spec()
    module = DetectorModule(spec, DetectionDataModule(spec).class_map)
    whole = groups(module)
    for parameter in module.parameters():  # with FSDP, a process has a flat part of each
        parameter.data = parameter.data.flatten()[: parameter.numel() // 2]
    assert groups(module) == whole
    assert {name for name in whole if not name.endswith("no_decay")} == {"backbone", "main", "linear_proj"}


class Code:
    def __reduce__(self):
        return print, ("this must not run",)


def test_fsdp_refuses_checkpoints_that_could_run_code(tmp_path):
    strategy = SafeFSDP(checkpoint_io=SafeCheckpointIO())
    torch.save({"state_dict": {}, "code": Code()}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError):
        strategy.load_checkpoint(tmp_path / "bad.pth")
