"""The reports of `train` and `evaluate`: the numbers of the run, and failures that do not end it."""

from __future__ import annotations

import io
import json
import re

import pytest
from PIL import Image


@pytest.fixture
def trained(project):
    """A run of two epochs with a validation after each."""
    project.spec["train"] = {"accelerator": "cpu", "num_epochs": 2, "optim": {"lr": 1e-4}}
    project.write()
    return project


def page(project, command: str) -> str:
    return (project.folder / "results" / command / "report.html").read_text()


def tiles(html: str) -> dict[str, str]:
    return {label: value for value, label in re.findall(r'tile"><b>(.*?)</b><span>(.*?)</span>', html)}


@pytest.mark.charts
def test_the_report_of_a_training_shows_its_last_validation_and_its_curves(trained):
    assert trained.run("train") == 0
    html, folder = page(trained, "train"), trained.folder / "results" / "train"
    kpi = trained.status("train")[-1]["kpi"]
    assert tiles(html)["epoch"] == "2 of 2"
    assert tiles(html)["mAP"] == f"{kpi['val_mAP']:.4f}" and tiles(html)["mAP50"] == f"{kpi['val_mAP50']:.4f}"
    assert 0 <= kpi["val_F1"] <= 1 and {"val_precision", "val_recall"} <= set(kpi)
    charts = {file.stem for file in (folder / "plots").iterdir()}
    assert {"train_loss", "val_scores", "precision_recall", "confusion_matrix", "classes"} <= charts
    for title in ("Losses", "Errors", "Worst images", "Splits", "Run"):
        assert f"<h2>{title}</h2>" in html
    assert "num_epochs: 2" in html  # the spec


def test_the_report_of_an_evaluation_shows_the_numbers_of_its_results(project):
    checkpoint = project.checkpoint(lively=True)
    assert project.run("evaluate", f"evaluate.checkpoint={checkpoint}") == 0
    html = page(project, "evaluate")
    result = json.loads((project.folder / "results" / "evaluate" / "results.json").read_text())
    assert tiles(html)["mAP"] == f"{result['mAP']:.4f}" and tiles(html)["images"] == "6"
    rows = re.findall(r"<tr>\s*<td>(\w+)</td>\s*<td class=\"number\">([^<]*)</td>\s*</tr>", html)
    expected = {
        name: "-" if value is None else f"{value:.4f}" for name, value in result.items() if name[:2] in ("AP", "AR")
    }
    assert {name: value for name, value in rows if name in expected} == expected


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_report_can_be_switched_off(trained, command):
    checkpoint = trained.checkpoint()
    assert trained.run(command, f"{command}.report=false", f"evaluate.checkpoint={checkpoint}") == 0
    folder = trained.folder / "results" / command
    assert not (folder / "report.html").exists() and not (folder / "plots").exists()


def test_a_training_whose_report_cannot_be_written_trains_to_its_end(trained, capsys):
    folder = trained.folder / "results" / "train"
    folder.mkdir(parents=True)
    (folder / "plots").write_text("in the way")
    assert trained.run("train") == 0
    assert "Skipping the report of this run: " in capsys.readouterr().err
    assert trained.status("train")[-1]["status"] == "SUCCESS" and (folder / "model_epoch_001.pth").is_file()


def test_an_evaluation_whose_report_cannot_be_written_leaves_its_results(project, capsys):
    folder = project.folder / "results" / "evaluate"
    folder.mkdir(parents=True)
    (folder / "plots").write_text("in the way")
    assert project.run("evaluate", f"evaluate.checkpoint={project.checkpoint()}") == 0
    assert "Skipping the report: " in capsys.readouterr().err
    assert (folder / "results.json").is_file() and not (folder / "report.html").exists()


def test_secrets_do_not_reach_the_report(trained, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "hunter2hunter2")
    assert trained.run("train", "train.notes=https://user:hunter2hunter2@example.org/") == 0
    assert "hunter2" not in page(trained, "train")


def test_the_charts_of_a_run_reach_tensorboard(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert trained.run("train") == 0
    (events,) = (trained.folder / "results" / "train" / "lightning_logs" / "version_0").glob("events*")
    logged = EventAccumulator(str(events)).Reload()
    shown = logged.Tags()["images"]
    assert "plots/precision_recall" in shown and "worst_images/0" in shown
    for image in (logged.Images(name)[-1] for name in shown):
        assert Image.open(io.BytesIO(image.encoded_image_string)).size == (image.width, image.height)
