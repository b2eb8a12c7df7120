"""The code in docs/python_api.md runs as written, on a small dataset with a small network."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from video_files import write_video

from rtdetr_tool.api import RFDETRNano
from rtdetr_tool.api.keywords import TRAIN
from rtdetr_tool.catalog import PUBLISHED_WEIGHTS
from rtdetr_tool.checkpoints.download import md5_of
from rtdetr_tool.families.rfdetr.names import to_rfdetr
from rtdetr_tool.spec.schema import field_names
from tests.api.small import SIDE, SMALL_RFDETR, lively

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "python_api.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
SCRIPT = next(block for block in BLOCKS if block.startswith("# train.py"))
NO_BACKBONE = {"model.train_backbone": False}  # no optimizer state for the 22 million parameters of the ViT
# Slow parts and their replacements in the test.
SHORTER = {
    "epochs=20,": "epochs=1, num_workers=0, multi_scale=False, wandb=False, device='cpu', **NO_BACKBONE,",
    '"test", dataset_dir="data"': '"test", dataset_dir="data", num_workers=0',
    "max_epochs=25": "max_epochs=2",
    "train.num_gpus=4": "train.num_gpus=2",
}


def shorter(source: str) -> str:
    for text, replacement in SHORTER.items():
        source = source.replace(text, replacement)
    return source


def small_spec() -> dict:
    """The page's spec with few epochs and a small network."""
    spec = yaml.safe_load(re.search(r"^```yaml\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL).group(1))
    spec["model"]["rfdetr"].update(SMALL_RFDETR)
    spec["model"]["train_backbone"] = False
    spec["dataset"].update(workers=0, batch_size=3, augmentation={"multi_scales": []})
    spec["train"].update(num_epochs=1, accelerator="cpu", enable_ema=False)
    return {**spec, "wandb": {"enable": False}}


@pytest.fixture(scope="module")
def folder(sample, tmp_path_factory):
    """A working folder as on the page: a dataset in Roboflow's layout, an image, and weights in the cache."""
    place = tmp_path_factory.mktemp("reader")
    for split in ("train", "valid", "test"):
        shutil.copytree(sample.images, place / "data" / split)
        (place / "data" / split / "_annotations.coco.json").write_text(json.dumps(sample.coco))
    shutil.copy(sample.image(1), place / "street.jpg")
    write_video(place / "street.mp4", 3)
    (place / "train.yaml").write_text(yaml.safe_dump(small_spec()))
    torch.manual_seed(0)
    network = lively(RFDETRNano(pretrain_weights=None, num_classes=90, device="cpu", **SMALL_RFDETR)).network
    args = argparse.Namespace(num_classes=90, resolution=SIDE, pretrain_weights="none")
    (place / "cache").mkdir()
    torch.save({"model": to_rfdetr(network.state_dict()), "args": args}, place / "cache" / "rf-detr-nano.pth")
    network = RFDETRNano(pretrain_weights=None, num_classes=2, device="cpu", **SMALL_RFDETR).network
    args = argparse.Namespace(num_classes=2, class_names=["cat", "dog"], resolution=SIDE, pretrain_weights="none")
    torch.save({"model": to_rfdetr(network.state_dict()), "args": args, "epoch": 0}, place / "old_checkpoint.pth")
    yield place
    shutil.rmtree(place)


def test_the_page_shows_every_part():
    assert len(BLOCKS) >= 9
    for text in SHORTER:
        assert any(text in block for block in BLOCKS), text


def test_every_keyword_and_field_of_the_page_exists():
    table = TEXT.split("| keyword | meaning |")[1].split("\n\n")[0]
    first = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    named = set(re.findall(r"`([a-z_]+)`", "".join(first)))
    assert named == {*TRAIN, "resolution", "callbacks", "resume"}
    fields = set(re.findall(r"`((?:train|dataset|wandb|model)\.[a-z_.]+[a-z_])", TEXT))
    assert fields - set(field_names()) == set()


@pytest.mark.slow
def test_the_page_runs_from_detecting_to_loggers(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RF_HOME", str(folder / "cache"))
    row = PUBLISHED_WEIGHTS["rf-detr-nano.pth"]
    monkeypatch.setitem(PUBLISHED_WEIGHTS, row.file, row._replace(md5=md5_of(folder / "cache" / row.file)))
    names: dict = {"NO_BACKBONE": NO_BACKBONE}
    for block in BLOCKS:
        if block is not SCRIPT:
            exec(compile(shorter(block), "python_api.md", "exec"), names)
    assert names["model"].class_names == names["datamodule"].class_names == ["cat", "dog"]
    assert (folder / "output" / "rfdetr-nano.onnx").exists() and (folder / "bundle" / "weights.pt").exists()
    assert (folder / "results" / "train" / "rtdetr_model_latest.pth").exists()
    assert any((folder / "results" / "mine").rglob("metrics.csv"))
    assert "['cat', 'dog']" in capsys.readouterr().out


@pytest.mark.slow
def test_the_script_for_several_gpus_runs_in_two_processes(folder):
    (folder / "train.py").write_text(shorter(SCRIPT))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    shutil.rmtree(folder / "results", ignore_errors=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    assert (folder / "results" / "train" / "rtdetr_model_latest.pth").exists()
