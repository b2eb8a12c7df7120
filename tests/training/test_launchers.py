"""Two processes of `rtdetr train`: on two nodes (torchrun) and with FSDP, they learn what DDP on one node learns."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rtdetr_tool.checkpoints.io import load_checkpoint
from tests.training.conftest import draw_dataset

pytestmark = pytest.mark.slow
MODEL = {
    "backbone": "resnet_18", "hidden_dim": 32, "nheads": 4, "dim_feedforward": 32, "feat_channels": [32, 32, 32],
    "num_queries": 12, "num_select": 12, "dec_layers": 2, "dn_number": 4,
}  # fmt: skip
TWO = ["train.num_gpus=2", "train.gpu_ids=[0,1]"]


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("launchers")
    train, val = draw_dataset(root / "train", 8, 1), draw_dataset(root / "val", 4, 2)
    augmentation = {"multi_scales": [], "train_spatial_size": [64, 64], "eval_spatial_size": [64, 64]}
    dataset = {"train_data_sources": [train], "val_data_sources": val, "num_classes": 3, "batch_size": 2, "workers": 0}
    # SGD: AdamW turns the rounding of tiny gradients into whole steps
    optim = {"optimizer": "SGD", "lr": 1e-3, "lr_backbone": 1e-3}
    schedule = {"num_epochs": 1, "accelerator": "cpu", "activation_checkpoint": False, "report": False, "seed": 7}
    document = {
        "results_dir": str(root),
        "wandb": {"enable": False},
        "model": MODEL,
        "dataset": {**dataset, "augmentation": augmentation},
        "train": {**schedule, "optim": optim},
    }
    (root / "spec.json").write_text(json.dumps(document))
    return root / "spec.json"


@pytest.fixture(scope="module")
def one_node(spec) -> dict[str, Any]:
    """Two processes on one node with DDP, started by torchrun."""
    finish([torchrun(spec, "one", ["--nproc_per_node", "2", *address()], TWO)])
    return weights(spec, "one")


def address() -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return ["--master_addr", "127.0.0.1", "--master_port", str(free.getsockname()[1])]


def torchrun(spec: Path, name: str, options: list[str], overrides: list[str]) -> subprocess.Popen[str]:
    return start(["torch.distributed.run", *options, "-m", "rtdetr_tool"], spec, name, overrides)


def start(module: list[str], spec: Path, name: str, overrides: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", *module, "train", "-e", str(spec), f"results_dir={spec.parent / name}", *overrides]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    outputs = [process.communicate(timeout=900)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return outputs


def weights(spec: Path, name: str, epoch: int = 0) -> dict[str, Any]:
    return load_checkpoint(spec.parent / name / "train" / f"model_epoch_{epoch:03d}.pth")["state_dict"]


def assert_close(actual: dict[str, Any], expected: dict[str, Any], **tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(actual[key], tensor, msg=key, **tolerance)


def test_two_nodes_learn_the_weights_of_one_node_with_two_processes(spec, one_node):
    where = address()
    nodes = [["--nnodes", "2", "--node_rank", str(rank), "--nproc_per_node", "1", *where] for rank in range(2)]
    outputs = finish([torchrun(spec, "two", options, ["train.num_nodes=2"]) for options in nodes])
    assert_close(weights(spec, "two"), one_node, rtol=0, atol=0)
    assert "Best checkpoint" in outputs[0] and "Best checkpoint" not in outputs[1]  # one process reports


@pytest.mark.skipif(torch.__version__ < (2, 15), reason="PyTorch's FSDP crashes on CPUs")
def test_fsdp_on_the_cpu_learns_the_weights_of_ddp_and_resumes(spec, one_node):
    fsdp = [*TWO, "train.distributed_strategy=fsdp"]
    finish([start(["rtdetr_tool"], spec, "sharded", fsdp)])
    assert_close(weights(spec, "sharded"), one_node, rtol=1e-4, atol=1e-5)
    state = load_checkpoint(spec.parent / "sharded" / "train" / "model_epoch_000.pth")["optimizer_states"][0]
    for slots in state["state"].values():  # views of one storage would be read as often as there are weights
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in slots.values())
    longer = [*fsdp, "train.num_epochs=2"]
    [output] = finish([start(["rtdetr_tool"], spec, "sharded", longer)])
    assert "Resuming" in output
    finish([start(["rtdetr_tool"], spec, "uninterrupted", longer)])
    assert_close(weights(spec, "sharded", 1), weights(spec, "uninterrupted", 1), rtol=0, atol=0)
