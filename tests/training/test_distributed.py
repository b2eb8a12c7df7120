"""Two processes (gloo) train like one process with twice the batch size, with the same metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.errors import UserError
from rtdetr_tool.spec import spec_to_dict
from rtdetr_tool.training.distributed import (
    broadcast_object,
    check_equal,
    gather_objects,
    has_launcher,
    rank,
    start_processes,
    world_size,
)
from rtdetr_tool.training.fit import fit
from rtdetr_tool.training.sync_batchnorm import sync_batch_norms

RUN = """
import json, sys
import pytorch_lightning as pl
import torch
from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.training.fit import fit

class Losses(pl.Callback):
    values = []
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        loss = outputs["loss"].detach().clone()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(loss)
            loss /= trainer.world_size
        self.values.append(loss.item())

if __name__ == "__main__":
    spec = spec_from_dict(json.load(open(sys.argv[1])))
    losses = Losses()
    result = fit(spec, callbacks=[losses])
    if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
        sys.exit(0)
    json.dump({"losses": losses.values, "metrics": result.metrics}, open(sys.argv[2], "w"))
"""


class Losses(pl.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())


def _train(spec, folder: Path, name: str) -> dict:
    script, file, out = folder / "run.py", folder / f"{name}.json", folder / f"{name}_result.json"
    script.write_text(RUN)
    file.write_text(json.dumps(spec_to_dict(spec)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, str(script), str(file), str(out)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.slow  # tests/training/test_ddp.py has two processes in the default run
def test_two_processes_train_like_one_with_twice_the_batch(make_spec, tmp_path):
    changes = {  # small SGD steps: AdamW turns rounding of tiny gradients into whole steps, large steps flip matches
        "train__num_epochs": 3, "train__optim__optimizer": "SGD", "train__optim__lr": 3e-3, "model__dn_number": 0,
        "train__optim__lr_backbone": 3e-3, "train__clip_grad_norm": 0.1, "train__validation_interval": 3,
        "dataset__augmentation__multi_scales": [32, 64], "dataset__augmentation__mosaic_prob": 0.5,
        "dataset__augmentation__mixup_prob": 0.5, "dataset__augmentation__mix_stop_epoch": 2, "train__enable_ema": True,
        "train__class_weights": {"green": 3.0},
    }  # fmt: skip
    one = make_spec(**changes, dataset__batch_size=4, train__results_dir=str(tmp_path / "one"))
    two = make_spec(
        **changes, dataset__batch_size=2, train__results_dir=str(tmp_path / "two"), train__num_gpus=2,
        train__gpu_ids=[0, 1],
    )  # fmt: skip
    losses = Losses()
    metrics = fit(one, callbacks=[losses]).metrics
    result = _train(two, tmp_path, "two")
    assert result["losses"] == pytest.approx(losses.values, rel=1e-4) and len(losses.values) == 6
    # three validation images in two processes: one is repeated, but counts once
    assert result["metrics"]["val/mAP_50_95"] == pytest.approx(metrics["val/mAP_50_95"], abs=1e-6)
    names = sorted(path.name for path in (tmp_path / "one").glob("*.pth"))
    assert names == sorted(path.name for path in (tmp_path / "two").glob("*.pth"))
    for name in ("model_epoch_002.pth", "model_epoch_002-EMA.pth"):
        a, b = (load_checkpoint(tmp_path / run / name)["state_dict"] for run in ("one", "two"))
        for key, tensor in a.items():
            torch.testing.assert_close(b[key], tensor, atol=1e-5, rtol=1e-4, msg=key)
    first = load_checkpoint(tmp_path / "one" / "model_epoch_000.pth")["state_dict"]
    last = load_checkpoint(tmp_path / "one" / "model_epoch_002.pth")["state_dict"]
    assert max((last[key] - first[key]).abs().max() for key in first if key.endswith("bias")) > 1e-4


def _norms(process: int, world: int, file: str, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=process, world_size=world)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert sync_batch_norms(model) == 1
    whole = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    out = model(whole[process::world])
    (out * torch.arange(out.numel()).view_as(out).sin() * (process + 1)).sum().backward()
    for parameter in model.parameters():
        torch.distributed.all_reduce(parameter.grad)
    gathered = gather_objects([process] * (process + 1))
    assert (rank(), world_size()) == (process, world) and broadcast_object(process) == 0
    check_equal({"dataset.batch_size": 8})
    with pytest.raises(
        UserError, match=r"dataset\.batch_size: .*different values \(4, 3\).*set dataset\.batch_size to 3"
    ):
        check_equal({"dataset.batch_size": 4 - process})
    state = {"out": out.detach(), "grads": [p.grad for p in model.parameters()], "buffers": dict(model.named_buffers())}
    torch.save({**state, "gathered": gathered}, f"{folder}/{process}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_synchronized_norms_equal_one_norm_over_the_whole_batch(tmp_path):
    torch.multiprocessing.spawn(_norms, args=(2, str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{i}.pt", weights_only=True) for i in range(2)]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    whole = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    out = model(whole)
    loss = 0
    for process in range(2):
        part = out[process::2]
        loss = loss + (part * torch.arange(part.numel()).view_as(part).sin() * (process + 1)).sum()
        torch.testing.assert_close(parts[process]["out"], part.detach(), atol=1e-5, rtol=1e-5)
    loss.backward()
    for part in parts:
        for gradient, parameter in zip(part["grads"], model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, atol=1e-4, rtol=1e-4)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(part["buffers"][name], buffer, atol=1e-6, rtol=1e-5)
    assert parts[0]["gathered"] == [0, 1, 1] and parts[1]["gathered"] == []


def test_gather_and_broadcast_work_in_one_process():
    check_equal({"dataset.batch_size": 8})
    assert gather_objects([1, 2]) == [1, 2] and broadcast_object("x") == "x" and (rank(), world_size()) == (0, 1)


@pytest.fixture
def no_launcher(monkeypatch):
    for name in [name for name in os.environ if has_launcher_name(name)]:
        monkeypatch.delenv(name)


def has_launcher_name(name: str) -> bool:
    return name.endswith("RANK") or name == "WORLD_SIZE" or name.startswith(("TORCHELASTIC", "SLURM", "PMI", "OMPI"))


def test_a_single_process_starts_without_lightning(monkeypatch, no_launcher) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)  # importing it would fail
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert start_processes() == torch.device("cpu")


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
def test_lightning_joins_the_processes_of_a_launcher(monkeypatch, no_launcher, name) -> None:
    assert not has_launcher()
    monkeypatch.setenv(name, "1")
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(ImportError, match="lightning_fabric"):
        start_processes()
