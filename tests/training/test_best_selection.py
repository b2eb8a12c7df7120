"""The best epoch with smoothed scores, against the accumulator of Roboflow's package."""

from __future__ import annotations

import pytest

from rtdetr_tool.training.best_selection import SmoothedSelection

SCORES = [0.3, 0.5, 0.1, 0.45, 0.44, 0.2]


def best_epochs(smoothing: float, scores: list[float], kind: str = "raw") -> list[int]:
    selection = SmoothedSelection(smoothing)
    return [epoch for epoch, score in enumerate(scores) if selection.admits(selection.smoothed({kind: score})[kind])]


def test_without_smoothing_the_highest_score_wins():
    assert best_epochs(0.0, SCORES) == [0, 1]


def test_smoothed_scores_are_those_of_the_package():
    average, best, expected = 0.0, float("-inf"), []
    for epoch, score in enumerate(SCORES):
        average = 0.5 * average + 0.5 * score  # 0.15, 0.325, 0.2125, 0.331, 0.386, 0.293
        if average > best:
            best = average
            expected.append(epoch)
    assert best_epochs(0.5, SCORES) == expected == [0, 1, 3, 4]


def test_scores_of_averaged_weights_are_not_smoothed():
    assert best_epochs(0.5, SCORES, "ema") == [0, 1]


def test_a_resumed_run_continues_the_average():
    whole, first = SmoothedSelection(0.7), SmoothedSelection(0.7)
    for score in SCORES[:3]:
        whole.admits(whole.smoothed({"raw": score})["raw"])
        first.admits(first.smoothed({"raw": score})["raw"])
    second = SmoothedSelection(0.7)
    second.restore(first.state())
    for score in SCORES[3:]:
        expected, actual = (one.smoothed({"raw": score})["raw"] for one in (whole, second))
        assert actual == pytest.approx(expected) and whole.admits(expected) == second.admits(actual)
