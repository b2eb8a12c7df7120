"""Snippets of Roboflow's documentation run with imports replaced by `rtdetr_tool.rfdetr`.

The pages are not part of the repository; without them, the tests are skipped.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning
import torch
from pytorch_lightning.loggers import CSVLogger

import rtdetr_tool.rfdetr as names
from rtdetr_tool.catalog import ENCODERS, PUBLISHED_WEIGHTS, RFDETR_VARIANTS, Encoder
from rtdetr_tool.checkpoints.download import md5_of
from rtdetr_tool.errors import UserError
from rtdetr_tool.families.rfdetr.names import to_rfdetr
from tests.api.small import Sample
from tests.api.snippets import snippets

SEEDS = Path(os.environ.get("RTDETR_SEEDS", Path(__file__).parents[3] / "shared" / "seeds"))
PAGES = sorted(SEEDS.glob("000_*.txt"))
OTHER_PAGES = sorted(SEEDS.glob("00[12]_*.txt"))
VAR_KEYWORD = inspect.Parameter.VAR_KEYWORD
needs_page = pytest.mark.skipif(not PAGES, reason="requires the page of the training API")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the dataset of the page, and the weights of a small Medium in the cache."""
    for name, row in ENCODERS.items():
        monkeypatch.setitem(ENCODERS, name, Encoder(name, 32, 2, 2, row.num_registers, "", ""))
    small = RFDETR_VARIANTS["medium"]._replace(
        out_feature_indexes=(1,), resolution=64, positional_encoding_size=4, hidden_dim=32, dec_layers=1, sa_nheads=2,
        ca_nheads=4, num_queries=8,
    )  # fmt: skip
    monkeypatch.setitem(RFDETR_VARIANTS, "medium", small)
    monkeypatch.setitem(RFDETR_VARIANTS, "small", small._replace(name="small", dec_layers=2))
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
    if torch.distributed.is_initialized():  # set by the script for several GPUs, together with addresses and ranks
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(environment)


def run(code: str, given: dict) -> dict:
    exec(compile(code, "seed", "exec"), given)
    return given


class Neptune(CSVLogger):
    """A substitute for a service that requires an account."""

    def __init__(self, project: str) -> None:
        super().__init__("neptune", name=project)


# The 10 snippets of the page "Custom Training API", by what they begin with and how often that was before. Those that
# resume need files of the page's previous runs.
@needs_page
@pytest.mark.slow
def test_every_snippet_of_the_training_page_runs(place, monkeypatch):
    monkeypatch.setattr(pytorch_lightning.loggers, "NeptuneLogger", Neptune, raising=False)
    cut = [snippet.code for snippet in snippets(PAGES[0])]
    assert len(cut) == 10
    given: dict = {}
    order = [1, 2, 0, 3, 4, 5, 6, 7, 8, 9]  # the first one uses the configs of the second one
    for index in order:
        if "last.ckpt" in cut[index]:
            assert {"last.ckpt", "checkpoint_best_ema.pth", "checkpoint_best_total.pth"} <= set(os.listdir("output"))
            opened = names.RFDETR.from_checkpoint("output/checkpoint_best_total.pth")
            assert opened.class_names == ["cat", "dog"]
            write_legacy_checkpoint(given["module"], Path("output/checkpoint.pth"))
            given["trainer"] = names.build_trainer(given["train_config"], given["model_config"], max_epochs=2)
        if "convert_legacy_checkpoint" in cut[index]:
            write_legacy_checkpoint(given["module"], Path("old_checkpoint.pth"))
            given["trainer"] = names.build_trainer(given["train_config"], given["model_config"], max_epochs=2)
            given["module"] = names.RFDETRModule(given["model_config"], given["train_config"])
        if "epochs=100" in cut[index]:  # a run of its own, as for a user who follows one example of the page
            shutil.rmtree("output", ignore_errors=True)
        run(cut[index], given)
        trainer = given.get("trainer")
        if "fast_dev_run" in cut[index]:
            settings = (trainer.fast_dev_run, trainer.accumulate_grad_batches, trainer.log_every_n_steps)
            assert settings == (2, 8, 10)
        if "LearningRateMonitor" in cut[index]:
            assert any(type(callback).__name__ == "LearningRateMonitor" for callback in trainer.callbacks)
        if "ckpt_path" in cut[index] and "resume" not in cut[index]:
            assert trainer.current_epoch == 2
    assert any(Path("neptune").rglob("metrics.csv"))
    assert given["module"].spec.train.optim.lr_layer_decay == 0.8 and given["datamodule"].class_names == ["cat", "dog"]


def write_legacy_checkpoint(module, path: Path) -> None:
    """A file of the package's old training loop, of its first epoch."""
    state = {"model": to_rfdetr(module.detector.state_dict()), "args": argparse.Namespace(num_classes=10), "epoch": 0}
    torch.save(state, path)


@needs_page
def test_the_other_snippets_run(place):
    """The second page has lost the indentation of its classes; otherwise these snippets are those of the first page."""
    network = names.RFDETRSmall(pretrain_weights=None, num_classes=2, device="cpu").network
    settings = argparse.Namespace(num_classes=2, class_names=["cat", "dog"], pretrain_weights="rf-detr-small.pth")
    torch.save({"model": to_rfdetr(network.state_dict()), "args": settings}, "checkpoint_best_total.pth")
    done, unindented = [], []
    for page in OTHER_PAGES:
        for snippet in snippets(page):
            if is_signature(snippet.code):
                continue
            if "\ndef __init__" in snippet.code:
                assert flat(snippet.code) in {flat(code) for code in done}
                unindented.append(snippet.place)
                continue
            given = run(snippet.code, {name: getattr(names, name) for name in ("RFDETR", "RFDETRSmall")})
            if "_TinyModel" not in snippet.code:
                assert type(given["model"]) is names.RFDETRSmall and given["model"].class_names == ["cat", "dog"]
            done.append(snippet.code)
    assert (len(done), len(unindented)) == (7, 2)


def flat(code: str) -> str:
    return "\n".join(line.strip() for line in code.splitlines())


def is_signature(code: str) -> bool:
    return "\n" not in code and re.match(r"\w+\(", code) is not None


@needs_page
def test_the_methods_of_the_classes_have_the_documented_parameters():
    """Names, order and defaults. `export` refuses `simplify` and `force` of older versions with a reason."""
    checked = set()
    for page in OTHER_PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            match = re.fullmatch(r"(\w+)(\(.*\))", line)
            method = getattr(names.RFDETR, match[1], None) if match else None
            if method is None or not callable(method):
                continue
            scope: dict = {"torch": torch}
            exec(f"def documented{match[2]}: pass", scope)
            expected, ours = inspect.signature(scope["documented"]).parameters, inspect.signature(method).parameters
            shared = [name for name in expected if name in ours and expected[name].kind is not VAR_KEYWORD]
            assert [name for name in ours if name in shared] == shared, match[1]
            for name in shared:
                required = expected[name].default is inspect.Parameter.empty
                assert required or str(ours[name].default) == str(expected[name].default), (match[1], name)
            missing = {name for name, entry in expected.items() if entry.kind is not VAR_KEYWORD} - set(shared)
            assert missing <= {"simplify", "force"}, match[1]
            assert not missing or any(entry.kind is VAR_KEYWORD for entry in ours.values())
            checked.add(match[1])
    assert len(checked) == 12


def test_configs_have_the_values_of_the_package():
    config = pytest.importorskip("rfdetr.config", reason="requires the package rfdetr")
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
