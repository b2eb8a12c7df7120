"""RT-DETR weights by the name of a model of the Hugging Face Hub, from a cache on this machine."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from rtdetr_tool.api import Detector
from rtdetr_tool.checkpoints.hub import HUB_NAMES, hub_id, verify
from rtdetr_tool.cli import main
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.formats.opening import open_detector
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.spec import read_spec, spec_from_dict
from rtdetr_tool.training.initial_weights import load_initial_weights
from tests.checkpoints.layouts import official_shapes, random_weights

# The detector of `directory`.
SMALL = {
    "backbone": "resnet_18d", "nheads": 4, "num_queries": 8, "hidden_dim": 32, "dim_feedforward": 48, "dec_layers": 1,
    "feat_channels": [32, 32, 32], "pe_order": "rows", "num_points": [8],
}  # fmt: skip
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory of transformers with a small RT-DETR."""
    folder = tmp_path_factory.mktemp("small")
    weights = random_weights(official_shapes(1, 18, classes=3, width=32, inner=48, layers=1, expansion=1.0))
    torch.save({"model": weights}, folder / "official.pth")
    overrides = ["model.nheads=4", "model.num_queries=8"]
    assert main(["convert", str(folder / "official.pth"), str(folder / "there"), "--to", "hf", *overrides]) == 0
    return folder / "there"


@pytest.fixture
def hub(directory, tmp_path, monkeypatch):
    """`hub(id)` puts the model into the cache; there is no network."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(name: str) -> None:
        folder = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        shutil.copytree(directory, folder / "snapshots" / COMMIT)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(COMMIT)

    return put


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("rtdetr_r18vd", "PekingU/rtdetr_r18vd"),
        ("rtdetrv2_r50vd", "PekingU/rtdetr_v2_r50vd"),
        ("someone/their-detector", "someone/their-detector"),
        ("https://huggingface.co/someone/their-detector", "someone/their-detector"),
    ],
)
def test_a_name_opens_the_model_of_the_hub(hub, directory, name, found):
    assert hub_id(name) == found
    hub(found)
    opened, expected = (open_detector(source, read_spec(None)) for source in (name, str(directory)))
    weights = expected.detector.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in opened.detector.state_dict().items())
    assert opened.spec.model.nheads == 4  # of config.json


@pytest.mark.parametrize("name", ["rtdetr_r18vd", "PekingU/rtdetr_r18vd"])
def test_a_name_works_for_commands_and_in_python(hub, directory, name, capsys, tmp_path):
    hub("PekingU/rtdetr_r18vd")
    assert main(["download", name]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert (folder / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()
    assert main(["models", "--json"]) == 0
    row = next(row for row in json.loads(capsys.readouterr().out) if row["name"] == "rtdetr_r18vd")
    assert row == {"name": "rtdetr_r18vd", "license": "Apache-2.0", "restricted": False, "path": str(folder)}
    assert Detector.from_checkpoint(name).network is not None
    spec = spec_from_dict({"model": SMALL, "train": {"pretrained_model_path": name}})
    detector = build_detector(spec.model, 3)
    assert len(load_initial_weights(detector, spec, ()).loaded) == len(detector.state_dict())


def test_corrupted_weights_of_the_hub_are_refused(tmp_path):
    blob = tmp_path / hashlib.sha256(b"all of it").hexdigest()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(blob)
    blob.write_bytes(b"all of it")
    verify(tmp_path / "snapshot")
    blob.write_bytes(b"half of it")
    with pytest.raises(CheckpointError, match=f"is corrupted: its SHA-256 is .*; expected {blob.name}"):
        verify(tmp_path / "snapshot")


def test_what_is_not_there_is_named_without_a_network(hub):
    with pytest.raises(CheckpointError, match="someone/missing does not exist here and could not be downloaded"):
        open_detector("someone/missing", read_spec(None))


def test_paths_are_not_taken_for_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    for path in ("results/model", "a/b.safetensors", "a/b.pth", "a/b/c", "model", str(tmp_path / "x"), "../x"):
        assert hub_id(path) is None
    (tmp_path / "rtdetr_r18vd").mkdir()
    assert hub_id("rtdetr_r18vd") is None
    assert len(HUB_NAMES) == 8
