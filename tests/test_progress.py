"""Progress: bars on a terminal, lines and status lines elsewhere, remaining time, nesting."""

from __future__ import annotations

import json
import logging

import pytest

from rtdetr_tool import progress
from rtdetr_tool.log import console, set_quiet
from rtdetr_tool.progress import Bar, Steps, Task, track
from rtdetr_tool.status import StatusLogger, set_current_status


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def status(tmp_path):
    logger = StatusLogger(tmp_path / "status.json")
    set_current_status(logger)
    yield lambda: [json.loads(line) for line in logger.path.read_text().splitlines()] if logger.path.exists() else []
    logger.close()
    set_current_status(StatusLogger())


@pytest.fixture
def lines(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("rtdetr_tool"), "propagate", True)
    caplog.set_level(logging.INFO, logger="rtdetr_tool")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "rtdetr_tool.progress"]


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(console(), "_force_terminal", True)


def test_a_line_every_20_seconds_has_speed_and_remaining_time(clock, lines):
    with Task("Reading", 100, "images") as task:
        for _ in range(30):
            clock.now += 1
            task.advance()
    assert lines() == ["Reading: 20/100 images, 1.0 images/s, 0:01:20 left"]


def test_status_has_a_line_every_30_seconds_with_the_remaining_time(clock, status):
    with Task("Reading", 100, "images") as task:
        for _ in range(65):
            clock.now += 1
            task.advance()
    assert [(line["message"], line["eta"]) for line in status()] == [
        ("Reading: 30/100 images, 1.0 images/s, 0:01:10 left", "0:01:10"),
        ("Reading: 60/100 images, 1.0 images/s, 0:00:40 left", "0:00:40"),
    ]


def test_items_of_an_earlier_run_do_not_count_for_the_speed(clock):
    with Task("Searching", 20, "trials", done=10) as task:
        clock.now += 60
        task.advance()
        assert task.seconds_left() == 9 * 60


def test_without_a_total_there_is_no_remaining_time(clock):
    with Task("Reading", None, "frames") as task:
        clock.now += 10
        task.advance(5)
        assert task.text() == "5 frames, 0.5 frames/s"


def test_steps_are_status_lines_and_their_shares_give_the_remaining_time(clock, status):
    with Steps("Exporting", {"tracing": 6, "comparing": 4}) as steps:
        steps.begin("tracing")
        assert steps.seconds_left() is None
        clock.now += 30
        steps.begin("comparing")
        assert steps.seconds_left() == pytest.approx(20)
        clock.now += 5
        assert steps.seconds_left() == pytest.approx(15)
        steps.reach(0.5)  # 80 % in 35 s
        assert steps.seconds_left() == pytest.approx(8.75)
    assert [line["message"] for line in status()] == [
        "Exporting: tracing (1/2), 0:00:00",
        "Exporting: comparing (2/2), 0:00:30, 0:00:20 left",
    ]


def test_nested_work_shares_one_display_that_ends_with_the_last(terminal):
    assert Bar._display is None
    with Task("outer", 2) as outer:
        assert outer._bar.visible
        for _ in track([1, 2, 3], "inner"):
            assert len(Bar._display.tasks) == 2
        with Steps("steps", {"a": 1}) as steps:
            steps.begin("a")
            assert len(Bar._display.tasks) == 2
        assert len(Bar._display.tasks) == 1
    assert Bar._display is None


def test_an_error_closes_the_display(terminal):
    with pytest.raises(ValueError, match="a fault"), Task("outer", 2):
        raise ValueError("a fault")
    assert Bar._display is None


def test_quiet_and_other_processes_show_nothing(terminal, monkeypatch):
    set_quiet(True)
    try:
        assert not Bar("hidden", 1).visible
    finally:
        set_quiet(False)
    monkeypatch.setenv("RANK", "1")
    assert not Bar("hidden", 1).visible


def test_track_yields_the_items_and_counts_them(clock, status):
    def items():
        for number in range(4):
            clock.now += 10
            yield number

    assert list(track(items(), "Reading", 4)) == [0, 1, 2, 3]
    assert [line["message"] for line in status()] == ["Reading: 3/4, 0:00:10 left"]
