"""`rtdetr report` compares runs: curves, scores, classes and the fields in which their specs differ."""

from __future__ import annotations

import json

import pytest

from rtdetr_tool.cli import main
from rtdetr_tool.reports.compare import comparison_page, read_run, run_names


def make_run(folder, rate: float, score: float, evaluated: bool = True) -> None:
    logs = folder / "train" / "csv_logs" / "version_0"
    logs.mkdir(parents=True)
    (logs / "metrics.csv").write_text(f"epoch,step,train/loss,val/mAP_50_95\n0,9,3.0,{score / 2}\n1,19,2.0,{score}\n")
    (folder / "train" / "experiment.yaml").write_text(
        f"results_dir: {folder}\ntrain:\n  optim: {{lr: {rate}}}\n  num_epochs: 2\n"
    )
    if evaluated:
        (folder / "evaluate").mkdir()
        result = {
            "AP": score + 0.01,
            "AP50": None,
            "per_class": [{"name": "cat", "AP": score}, {"name": "dog", "AP": None}],
        }
        (folder / "evaluate" / "results.json").write_text(json.dumps(result))


@pytest.fixture
def runs(tmp_path):
    for name, rate, score in (("slow", 1e-4, 0.25), ("fast", 1e-3, 0.5)):
        make_run(tmp_path / name, rate, score)
    return tmp_path


def tables(page) -> dict[str, list]:
    return {
        section.title: [block.rows for block in section.blocks if block.kind == "table"] for section in page.sections
    }


def test_scores_classes_and_differing_fields_are_side_by_side(runs):
    page = comparison_page([read_run(runs / name, name) for name in ("slow", "fast")])
    result = tables(page)
    assert result["Scores"] == [
        [
            ["slow", "20", "0.2500", "2", "0.2600", *"-----"],
            ["fast", "20", "0.5000", "2", "0.5100", *"-----"],
        ]
    ]
    assert result["By class"] == [[["cat", "0.2500", "0.5000"], ["dog", "-", "-"]]]
    assert result["Spec"] == [[["train.optim.lr", "0.0001", "0.001"]]]
    assert ("best run", "fast") in page.tiles
    assert [chart.name for chart in page.charts] == ["val_mAP_50_95", "train_loss"]


def test_the_command_writes_a_page_and_names_it(runs, capsys):
    target = runs / "comparison"
    assert main(["report", str(runs / "slow"), str(runs / "fast" / "train"), "-o", str(target)]) == 0
    html = (target / "report.html").read_text()
    assert "train.optim.lr" in html and "slow" in html
    assert (target / "plots" / "val_mAP_50_95.png").is_file()
    assert "report.html" in capsys.readouterr().err


def test_runs_are_named_by_what_differs_in_their_paths(tmp_path):
    assert run_names([tmp_path / "a" / "train", tmp_path / "b" / "train"]) == ["a/train", "b/train"]
    assert run_names([tmp_path / "only"]) == ["only"]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["nowhere"], "nowhere does not exist; expected the results folder"),
        (["empty"], "empty: no run to report; expected csv_logs or results.json"),
        (["slow", "slow"], "given twice"),
        (["damaged"], "results.json: cannot be read"),
    ],
)
def test_folders_that_are_no_runs_end_in_one_message(runs, capsys, folders, message):
    (runs / "empty").mkdir()
    (runs / "damaged").mkdir()
    (runs / "damaged" / "results.json").write_text("{")
    assert main(["report", *(str(runs / name) for name in folders), "-o", str(runs / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (runs / "out").exists()


def test_a_page_that_cannot_be_written_ends_in_one_message(runs, capsys):
    (runs / "file").write_text("")
    assert main(["report", str(runs / "slow"), "-o", str(runs / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err
