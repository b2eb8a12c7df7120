"""The Makefile's targets and their commands."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from rtdetr_tool import cli
from rtdetr_tool.spec import read_spec

ROOT = Path(__file__).parents[1]


def make(*arguments: str) -> str:
    """Standard output of make, even if the tests themselves run in make."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    run = subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=outside)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_help_is_the_default_and_lists_every_public_target():
    shown = make()
    assert shown == make("help")
    for target in ("demo", "test", "test-slow", "lint", "gpu-check", "gpu-wheels", "docs", "install"):
        assert f"make {target} " in shown


@pytest.mark.parametrize("folder", ["demo", "other place/demo"])
def test_the_demo_runs_three_valid_commands_on_the_data_it_draws(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = [shlex.split(line) for line in make("-n", "demo", f"DEMO_DIR={folder}").replace("\\\n", " ").splitlines()]
    script = next(words for words in lines if "scripts/make_sample_dataset.py" in words)
    assert script[2] == f"{folder}/data"
    commands = [words for words in lines if words and words[0].endswith("bin/rtdetr")]
    assert [words[1] for words in commands] == ["train", "evaluate", "inference"]
    for words in commands:
        options = cli.build_command_parser(words[1]).parse_intermixed_args(words[2:])
        given = [] if options.results_dir is None else [f"results_dir='{options.results_dir}'"]
        spec = read_spec(options.experiment_spec_file, [*options.overrides, *given], words[1]).spec
        assert getattr(spec, words[1]).results_dir == f"{folder}/results/{words[1]}"
        data = spec.dataset
        for source in (data.train_data_sources[0], data.val_data_sources, data.infer_data_sources):
            assert all(path.startswith(f"{folder}/data/") for path in source.values())
        best = f"{folder}/results/train/rtdetr_model_best.pth"
        assert spec.evaluate.checkpoint == spec.inference.checkpoint == best
    assert lines[-1][1:] == ["scripts/demo_summary.py", f"{folder}/results", "--require", "0.70"]


def test_the_ci_script_can_be_run_and_calls_the_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text and "make check" in text
    checks = make("-n", "check")
    assert "ruff check" in checks and "ruff format --check" in checks and "mypy" in checks and "pytest" in checks


def test_tflite_is_tested_with_its_converter_in_ci():
    recipe = make("-n", "test-tflite", "-W", "pyproject.toml")
    (line,) = [line for line in recipe.splitlines() if "-m pytest" in line]
    words = shlex.split(line)
    files = {path for path in (ROOT / "tests").rglob("test_*tflite*.py") if "tflite_docs" not in path.name}
    assert {ROOT / word for word in words if word.startswith("tests/")} == files
    assert "not gpu" in words, "the slow tests too"
    assert "'torch<2.15'" in recipe and "'.[tflite]'" in recipe
    assert "make test-tflite" in (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")


def test_gpu_check_runs_every_gpu_test_and_the_benchmark_within_nine_minutes():
    recipe = make("-n", "gpu-check", "OFFICIAL=a checkout").replace("\\\n", " ")
    words = shlex.split(next(line for line in recipe.splitlines() if "bench_gpu.py" in line).replace(";", " "))
    seconds = int(words[words.index("--signal=INT") + 1]) + int(words[words.index("--budget") + 1])
    assert seconds <= 540 - 45  # the last model of the benchmark may take this long
    assert words[words.index("--official") + 1] == "a checkout"
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text(encoding="utf-8")]
    marked.remove(Path(__file__).resolve())
    given = [ROOT / word for word in words if word.startswith("tests/")]
    assert marked and all(any(path.is_relative_to(folder) for folder in given) for path in marked)
