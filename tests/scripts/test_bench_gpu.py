"""The benchmark for GPUs runs on a CPU with small images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_gpu.py"


@pytest.mark.slow
@pytest.mark.parametrize(("model", "peer"), [("r18", "transformers"), ("nano", "rfdetr")])
def test_the_benchmark_measures_ours_and_the_peer(tmp_path, model, peer):
    pytest.importorskip(peer)
    small = ["--device", "cpu", "--size", "64", "--batch", "1", "--latency", "1", "--steps", "1", "--turns", "1"]
    options = [*small, "--models", model, "--precisions", "fp32", "--peak", "1", "--official", str(tmp_path / "absent")]
    command = [sys.executable, str(SCRIPT), *options, "--json", str(tmp_path / "bench.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["who"]: row for row in json.loads((tmp_path / "bench.json").read_text())["rows"]}
    for who in ("ours", peer):
        row = rows[who]
        assert row["images_per_second"] == pytest.approx(1000 / row["step_ms"]) and row["latency_b1_ms"] > 0
        assert row["mfu"] == pytest.approx(row["tflops"]) and 0 < row["tflops"] < 1
        assert f"| {model} | {who} | fp32 |" in done.stdout
    if model == "r18":  # a peer that fails does not end the run
        assert "error" in rows["official"] and "step_ms" not in rows["official"]


@pytest.mark.slow
def test_models_beyond_the_budget_are_skipped(tmp_path):
    options = ["--device", "cpu", "--budget", "-1", "--json", str(tmp_path / "bench.json")]
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Skipping r18 bf16, r50 bf16, nano bf16, r18 fp32, r50 fp32, nano fp32" in done.stdout
