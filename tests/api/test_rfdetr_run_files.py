"""The files of a run of the Python classes, opened by Roboflow's package."""

from __future__ import annotations

import json

import pytest
import torch

from rtdetr_tool.api import RFDETR, RFDETRNano
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.formats.description import describe

NOTES = {"purpose": "test", "tries": [1, 2]}
SMALL = {"resolution": 64, "dec_layers": 1, "num_queries": 8, "num_select": 8, "group_detr": 2}
FILES = ("checkpoint_best_regular.pth", "checkpoint_best_ema.pth", "checkpoint_best_total.pth", "last.ckpt")


@pytest.fixture(scope="module")
def run(sample, tmp_path_factory):
    """A trained detector and its `output_dir`."""
    torch.manual_seed(0)
    detector = RFDETRNano(None, 2, "cpu", **SMALL)
    folder = tmp_path_factory.mktemp("run")
    detector.train(
        **sample.keywords, epochs=1, batch_size=3, multi_scale=False, lr=1e-3, notes=NOTES, output_dir=folder
    )
    return detector, folder


def test_a_run_has_the_files_of_the_package(run):
    folder = run[1]
    assert all((folder / name).is_file() for name in FILES)
    total, regular = (load_checkpoint(folder / FILES[index]) for index in (2, 0))
    assert total["notes"] == total["args"]["notes"] == NOTES and total["model_name"] == "RFDETRNano"
    assert total["args"]["class_names"] == ["cat", "dog"] and total["args"]["epochs"] == 1
    assert (total["rtdetr_tool"]["weights"], regular["rtdetr_tool"]["weights"]) == ("ema", "raw")
    weight = "class_embed.weight"
    assert total["model"][weight].data_ptr() == total["state_dict"][f"model.model.decoder.{weight}"].data_ptr()
    assert not torch.equal(total["model"][weight], regular["model"][weight])


def test_the_settings_of_a_run_are_json(run):
    settings = json.loads((run[1] / "training_config.json").read_text())
    assert settings["class_names"] == ["cat", "dog"] and settings["num_classes"] == 2
    train, model = settings["train_config"], settings["model_config"]
    assert (train["lr"], train["lr_encoder"], train["batch_size"], train["notes"]) == (1e-3, 1.5e-4, 3, NOTES)
    assert settings["model_config_type"] == "RFDETRNanoConfig"
    assert {name: model[name] for name in SMALL} == SMALL and model["encoder"] == "dinov2_windowed_small"


@pytest.mark.parametrize("name", FILES)
def test_the_package_opens_a_file_of_a_run(run, name):
    rfdetr = pytest.importorskip("rfdetr", reason="requires the package rfdetr")
    path = run[1] / name
    opened = rfdetr.RFDETR.from_checkpoint(str(path), device="cpu")
    assert type(opened).__name__ == "RFDETRNano" and opened.class_names == ["cat", "dog"]
    config = opened.model_config
    assert (config.resolution, config.dec_layers, config.num_queries, config.num_classes) == (64, 1, 8, 2)
    stored, loaded = load_checkpoint(path)["model"], opened.model.model.state_dict()
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[key], loaded[key]) for key in stored)


def test_our_classes_open_every_file_of_a_run_with_its_classes(run):
    for name in FILES:
        opened = RFDETR.from_checkpoint(run[1] / name, device="cpu")
        assert type(opened) is RFDETRNano and opened.class_names == ["cat", "dog"] and opened.input_size == (64, 64)


def test_onnx_files_have_the_notes_under_the_key_of_the_package():
    meta = {"classes": [], "spec": {}}
    assert describe(meta, (64, 64), '{"a": 1}', "rfdetr")["rfdetr_notes"] == '{"a": 1}'
    assert "rfdetr_notes" not in describe(meta, (64, 64), "text", "tao")
