"""Lines of status.json."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from rtdetr_tool.status import StatusLogger, current_status, process_rank, set_current_status

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


@pytest.fixture(autouse=True)
def single_process(monkeypatch):
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_the_keys_and_formats_of_tao(tmp_path):
    path = tmp_path / "status.json"
    StatusLogger(path).started("Starting RT-DETR train.")
    (line,) = lines_of(path)
    assert set(line) == {"date", "time", "status", "verbosity", "message"}
    assert re.fullmatch(r"[1-9]\d?/[1-9]\d?/\d{4}", line["date"])
    assert re.fullmatch(r"\d{1,2}:\d{1,2}:\d{1,2}", line["time"])
    assert not re.search(r"\b0\d", line["date"] + " " + line["time"])
    assert (line["status"], line["verbosity"]) == ("STARTED", "INFO")
    assert line["message"] == "Starting RT-DETR train."


def test_a_whole_run_appends_line_by_line(tmp_path):
    path = tmp_path / "status.json"
    path.write_text('{"message": "an earlier run"}\n')
    status = StatusLogger(path)
    status.started("Starting Training Loop.")
    status.running("Eval metrics generated.", kpi={"val_mAP": 0.25})
    status.running("Training loop in progress", epoch=0, max_epoch=9, step=12, time_per_epoch=61.5, eta=553.25)
    status.skipped("Nothing to freeze.")
    status.success("Done.")
    states = [line.get("status") for line in lines_of(path)]
    assert states == [None, "STARTED", "RUNNING", "RUNNING", "SKIPPED", "SUCCESS"]
    progress = lines_of(path)[3]
    assert (progress["epoch"], progress["max_epoch"], progress["step"]) == (0, 9, 12)
    assert (progress["time_per_epoch"], progress["eta"]) == ("0:01:01.500000", "0:09:13.250000")


def test_kpis_are_numbers_and_stay_until_they_change(tmp_path):
    import numpy as np

    path = tmp_path / "status.json"
    status = StatusLogger(path)
    status.running("one", kpi={"val_mAP": np.float32(0.5), "epochs": 3})
    status.running("two", kpi={"train_loss": 1.5})
    status.running("three", kpi={"val_mAP": 0.75})
    kpis = [line["kpi"] for line in lines_of(path)]
    assert kpis[0] == {"val_mAP": 0.5, "epochs": 3.0}
    assert kpis[1] == {"val_mAP": 0.5, "epochs": 3.0, "train_loss": 1.5}
    assert kpis[2]["val_mAP"] == 0.75
    assert all(isinstance(value, float) for kpi in kpis for value in kpi.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_json_cannot_say_becomes_null(tmp_path, value):
    path = tmp_path / "status.json"
    StatusLogger(path).running("x", kpi={"loss": value})
    assert lines_of(path)[0]["kpi"] == {"loss": None}


def test_each_line_is_written_at_once_so_that_writers_do_not_mix(tmp_path):
    path = tmp_path / "status.json"
    status = StatusLogger(path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: status.running("x" * 3000 + str(number)), range(200)))
    assert sorted(int(line["message"].lstrip("x")) for line in lines_of(path)) == list(range(200))


def test_a_failure_is_an_error_and_ends_the_run(tmp_path):
    status = StatusLogger(tmp_path / "status.json")
    assert not status.finished
    status.failure("Configuration error: no data")
    assert status.finished
    line = lines_of(tmp_path / "status.json")[0]
    assert (line["status"], line["verbosity"]) == ("FAILURE", "ERROR")


def test_a_file_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    StatusLogger(tmp_path / "no" / "folder" / "status.json").running("x")
    assert "status.json cannot be written" in caplog.text


def test_without_a_command_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    current_status().running("x", kpi={"a": 1})
    assert not list(tmp_path.iterdir())


def test_the_running_command_is_reached_from_everywhere(tmp_path):
    status = StatusLogger(tmp_path / "status.json")
    set_current_status(status)
    try:
        assert current_status() is status
    finally:
        set_current_status(StatusLogger())


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"LOCAL_RANK": "0"}, 0),
        ({"LOCAL_RANK": "3"}, 3),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, 1),
        ({"RANK": "0", "LOCAL_RANK": "0", "NODE_RANK": "0"}, 0),
        ({"RANK": "5", "LOCAL_RANK": "1"}, 5),
        ({"SLURM_PROCID": "2"}, 2),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, 1),
    ],
)
def test_only_the_first_process_writes(tmp_path, monkeypatch, environment, rank):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert process_rank() == rank
    StatusLogger(tmp_path / "status.json").started("x")
    assert (tmp_path / "status.json").exists() == (rank == 0)
