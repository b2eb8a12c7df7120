"""Snippets of Roboflow's documentation run with their imports changed to `rtdetr_tool.rfdetr`.

The pages are not part of the repository; without them the tests are skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

import rtdetr_tool.rfdetr as names
from rtdetr_tool.catalog import DINOV2, PUBLISHED_WEIGHTS, RFDETR_VARIANTS, Dinov2
from rtdetr_tool.checkpoints.download import md5_of
from rtdetr_tool.errors import UserError
from rtdetr_tool.families.rfdetr.names import to_rfdetr
from tests.api.small import Sample

SEEDS = Path(os.environ.get("RTDETR_SEEDS", Path(__file__).parents[3] / "shared" / "seeds"))
PAGES = sorted(SEEDS.glob("000_*.txt"))
needs_page = pytest.mark.skipif(not PAGES, reason="needs the page of the training API")


def snippet(first: str, last: str, number: int = 0) -> str:
    """The lines from the `number`-th one that starts with `first` to the next one that is `last`, imports changed."""
    lines = PAGES[0].read_text(encoding="utf-8").splitlines()
    start = [index for index, line in enumerate(lines) if line.startswith(first)][number]
    end = next(index for index in range(start, len(lines)) if lines[index] == last)
    return re.sub(r"from rfdetr[.\w]* import", "from rtdetr_tool.rfdetr import", "\n".join(lines[start : end + 1]))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the dataset of the page, and a small Medium whose weights are in the cache."""
    for name, row in DINOV2.items():
        monkeypatch.setitem(DINOV2, name, Dinov2(name, 32, 2, 2, row.num_registers, "", ""))
    small = RFDETR_VARIANTS["medium"]._replace(
        out_feature_indexes=(1,), resolution=64, positional_encoding_size=4, hidden_dim=32, dec_layers=1, sa_nheads=2,
        ca_nheads=4, num_queries=8,
    )  # fmt: skip
    monkeypatch.setitem(RFDETR_VARIANTS, "medium", small)
    sample = Sample(tmp_path / "sample")
    for split in ("train", "valid", "test"):
        shutil.copytree(sample.images, tmp_path / "path" / "to" / "dataset" / split)
        labels = tmp_path / "path" / "to" / "dataset" / split / "_annotations.coco.json"
        labels.write_text(json.dumps(sample.coco))
    network = names.RFDETRMedium(pretrain_weights=None, num_classes=90, device="cpu").network
    file = tmp_path / "cache" / "rf-detr-medium.pth"
    file.parent.mkdir()
    torch.save({"model": to_rfdetr(network.state_dict()), "args": argparse.Namespace(num_classes=90)}, file)
    monkeypatch.setenv("RF_HOME", str(file.parent))
    monkeypatch.setitem(PUBLISHED_WEIGHTS, file.name, PUBLISHED_WEIGHTS[file.name]._replace(md5=md5_of(file)))
    short = partial(names.build_trainer, accelerator="cpu", max_epochs=1)
    monkeypatch.setattr(names, "build_trainer", lambda *configs, **kwargs: short(*configs, **kwargs))
    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ)
    yield tmp_path
    if torch.distributed.is_initialized():  # by the script for several GPUs, which also sets addresses and ranks
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(environment)


def run(text: str, given: dict) -> dict:
    exec(compile(text, "seed", "exec"), given)
    return given


@needs_page
def test_the_training_primitives_of_the_page_run(place):
    given = run(snippet("from rfdetr.config import", "trainer.fit(module, datamodule)", 1), {})
    assert {"last.ckpt", "checkpoint_best_ema.pth", "checkpoint_best_total.pth"} <= set(os.listdir("output"))
    assert names.RFDETR.from_checkpoint("output/checkpoint_best_total.pth").class_names == ["cat", "dog"]
    assert given["module"].spec.train.optim.lr_layer_decay == 0.8 and given["datamodule"].class_names == ["cat", "dog"]

    text = snippet("from rfdetr.training import RFDETRModule", "trainer = build_trainer(train_config, model_config)")
    run(text, given)
    given["trainer"] = names.build_trainer(given["train_config"], given["model_config"], max_epochs=2)
    run(snippet('trainer.fit(module, datamodule, ckpt_path="output/last.ckpt")', "# or a legacy checkpoint:"), given)
    assert given["trainer"].current_epoch == 2


@needs_page
def test_the_module_data_module_and_trainer_of_the_page_are_built(place):
    given = run(snippet("from rfdetr.config import", "module = RFDETRModule(model_config, train_config)"), {})
    run(snippet("from rfdetr.training import RFDETRDataModule",
                "datamodule = RFDETRDataModule(model_config, train_config)"), given)  # fmt: skip
    given["build_trainer"] = names.build_trainer  # which the page imports further up
    run(snippet("trainer = build_trainer(", ")", 1), given)
    trainer = given["trainer"]
    assert (trainer.fast_dev_run, trainer.accumulate_grad_batches, trainer.log_every_n_steps) == (2, 8, 10)
    run(snippet("from pytorch_lightning.callbacks import LearningRateMonitor", ")", 0), given)
    assert any(type(callback).__name__ == "LearningRateMonitor" for callback in given["trainer"].callbacks)


@needs_page
def test_the_script_for_several_gpus_and_a_legacy_checkpoint_run(place):
    given = run(snippet("from rfdetr.config import", "trainer.fit(module, datamodule)", 2), {})
    network = given["module"].detector
    state = {"model": to_rfdetr(network.state_dict()), "args": argparse.Namespace(num_classes=10), "epoch": 0}
    torch.save(state, "old_checkpoint.pth")
    given["trainer"] = names.build_trainer(given["train_config"], given["model_config"], max_epochs=2)
    given["module"] = names.RFDETRModule(given["model_config"], given["train_config"])
    text = snippet("from rfdetr.training import convert_legacy_checkpoint",
                   'trainer.fit(module, datamodule, ckpt_path="new_checkpoint.ckpt")')  # fmt: skip
    run(text, given)
    assert given["trainer"].current_epoch == 2


def test_configs_have_the_values_of_the_package():
    config = pytest.importorskip("rfdetr.config", reason="needs the package rfdetr")
    for name in ("RFDETRNanoConfig", "RFDETRMediumConfig", "RFDETRLargeConfig", "RFDETRSegNanoConfig"):
        own, reference = getattr(names, name)(), getattr(config, name).model_fields
        for field in ("resolution", "dec_layers", "hidden_dim", "out_feature_indexes", "patch_size", "num_windows"):
            assert getattr(own, field) == reference[field].default, (name, field)
    with pytest.raises(UserError, match="has no field nothing"):
        names.RFDETRNanoConfig(nothing=1)
    with pytest.raises(ValueError, match="dataset_dir"):
        names.TrainConfig(epochs=3)


def test_a_detector_gives_its_configs():
    from tests.api.small import SMALL_RFDETR

    detector = names.RFDETRNano(None, 2, "cpu", **SMALL_RFDETR)
    config = detector.get_model_config(num_queries=50)
    assert (config.resolution, config.num_queries, config.num_classes) == (64, 50, 2)
    assert detector.model_config.dec_layers == 1 and detector.model.model is detector.network
    assert detector.get_train_config(dataset_dir="data", epochs=3).epochs == 3
