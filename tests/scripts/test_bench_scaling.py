"""The benchmark of scaling: fitted exponents, and a run with small images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_the_exponent_of_a_power_is_found():
    from bench_scaling import fitted_exponent

    values = [100, 200, 400, 800]
    assert fitted_exponent(values, [3e-4 * value**1.5 for value in values]) == pytest.approx(1.5)
    assert fitted_exponent(values, [7.0] * 4) == pytest.approx(0)


def test_growth_at_the_end_is_compared_with_the_architecture():
    from bench_scaling import AXES, Curve

    classes = next(axis for axis in AXES if axis.name == "classes")
    linear = Curve(classes, "inference", [20, 80, 320], [1.0, 1.0, 4.0])
    quadratic = Curve(classes, "inference", [20, 80, 320], [1.0, 1.0, 16.0])
    assert linear.end == pytest.approx(1) and linear.exponent < 0.6 and linear.within
    assert quadratic.end == pytest.approx(2) and not quadratic.within


def test_sides_alternate_and_ratios_are_taken_within_a_round():
    from bench_timing import Times, alternate, ratio

    order: list[str] = []
    sides = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = alternate(sides, 2, warm_up=1)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert all(len(side.seconds) == 2 for side in times.values())
    loaded = ratio(Times((1.0, 10.0, 2.0)), Times((2.0, 20.0, 4.0)))  # the second round was ten times slower
    assert loaded == (0.5, 0.5, 0.5)


@pytest.mark.slow
def test_the_benchmark_measures_steps_inference_and_ranks(tmp_path):
    options = ["--size", "64", "--batch", "1", "--queries", "50", "--rounds", "1", "--axes", "classes", "ranks"]
    files = ["--plot", str(tmp_path / "scaling.svg"), "--json", str(tmp_path / "scaling.json")]
    command = [sys.executable, str(SCRIPTS / "bench_scaling.py"), *options, *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert "| classes | 20, 80, 320, 1280 | training step |" in done.stdout, done.stderr[-2000:]
    curves = json.loads((tmp_path / "scaling.json").read_text())
    assert [(curve["axis"], curve["work"]) for curve in curves] == [
        ("classes", "training step"), ("classes", "inference"), ("ranks", "training step"),
    ]  # fmt: skip
    assert all(seconds > 0 for curve in curves for seconds in curve["seconds"])
    assert (tmp_path / "scaling.svg").read_text().startswith("<?xml")
