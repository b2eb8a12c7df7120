"""RF-DETR checkpoints of Roboflow's training loops are converted to resumable ones."""

from __future__ import annotations

import argparse

import pytest
import torch

from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rfdetr.names import to_rfdetr
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.spec import ModelSpec
from rtdetr_tool.training import convert_legacy_checkpoint
from rtdetr_tool.training.checkpointing import SafeCheckpointIO

FEW = {"num_queries": 5, "group_detr": 2, "dim_feedforward": 16, "dec_layers": 1}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_detector(ModelSpec(arch="rfdetr", rfdetr=RfdetrSpec(**FEW)), 3)


@pytest.fixture(scope="module")
def old(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("legacy") / "checkpoint.pth"
    args = argparse.Namespace(class_names=["cat", "dog"], num_classes=2)
    torch.save({"model": to_rfdetr(network.state_dict()), "args": args, "epoch": 3, "optimizer": {}}, path)
    return path


def test_weights_classes_and_epoch_are_kept(network, old, tmp_path):
    convert_legacy_checkpoint(old, tmp_path / "new.ckpt")
    new = load_checkpoint(tmp_path / "new.ckpt")
    assert new["epoch"] == 4 and new["global_step"] == 0 and new["optimizer_states"] == []
    assert new["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"] == 4
    assert [entry["name"] for entry in new["rtdetr_tool"]["classes"]] == ["cat", "dog"]
    for name, tensor in network.state_dict().items():
        assert torch.equal(new["state_dict"][f"model.model.{name}"], tensor), name


def test_the_original_file_is_read_like_the_converted_one(old, tmp_path):
    convert_legacy_checkpoint(old, tmp_path / "new.ckpt")
    payloads = [SafeCheckpointIO().load_checkpoint(path) for path in (old, tmp_path / "new.ckpt")]
    assert set(payloads[0]) == set(payloads[1]) and payloads[0]["loops"] == payloads[1]["loops"]


def test_another_file_is_refused_with_advice(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match=r"a detector's weights, not an RF-DETR.*train.pretrained_model_path"):
        convert_legacy_checkpoint(tmp_path / "bare.pth", tmp_path / "new.ckpt")
    assert not (tmp_path / "new.ckpt").exists()
