"""What the scripts that compare training runs share: the drawn dataset, a small spec, commands, curves of scores."""

from __future__ import annotations

import csv
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
NUM_CLASSES = 5  # of the drawn dataset


def absolute(path: str) -> Path:
    return Path(path).resolve()


def draw(folder: Path, train: int, val: int = 60, size: int = 160) -> Path:
    """Draw the sample dataset unless it exists; `size` is the side of its images."""
    if not (folder / "classmap.txt").exists():
        program = [sys.executable, str(ROOT / "scripts" / "make_sample_dataset.py"), str(folder)]
        counts = ["--train", str(train), "--val", str(val), "--test", "1", "--size", str(size)]
        subprocess.run([*program, *counts], check=True)
    return folder


def sources(data: Path) -> dict[str, Any]:
    """The fields of `dataset` for a drawn dataset."""
    train, val = (
        {"image_dir": str(data / split), "json_file": str(data / "annotations" / f"instances_{split}.json")}
        for split in ("train", "val")
    )
    return {"train_data_sources": [train], "val_data_sources": val, "num_classes": NUM_CLASSES}


def small_spec(data: Path, side: int, epochs: int, backbone: str, layers: int = 3, queries: int = 30) -> dict[str, Any]:
    """An RT-DETR that a CPU trains in minutes."""
    size = [side, side]
    return {
        "wandb": {"enable": False},
        "model": {
            "backbone": backbone,
            "hidden_dim": 64,
            "nheads": 4,
            "feat_channels": [64, 64, 64],
            "dim_feedforward": 128,
            "dec_layers": layers,
            "num_queries": queries,
            "num_select": queries,
            "dn_number": 10,
        },
        "dataset": {
            **sources(data),
            "batch_size": 8,
            "workers": 0,
            "cache": "ram",
            "augmentation": {"train_spatial_size": size, "eval_spatial_size": size, "multi_scales": []},
        },
        "train": {
            "accelerator": "cpu",
            "num_epochs": epochs,
            "report": False,
            "tensorboard": False,
            "enable_ema": True,
            "ema": {"decay": 0.99},
            "optim": {"lr": 1e-3, "lr_backbone": 1e-3, "warmup_steps": 30},
        },
    }


def merged(spec: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a spec with the values of `changes`, section by section."""
    result = dict(spec)
    for name, value in changes.items():
        old = result.get(name)
        result[name] = merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return result


def command_line(folder: Path, command: str, *overrides: str) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of a command with the spec of a folder."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    spec = str(folder / "spec.yaml")
    return [sys.executable, "-m", "rtdetr_tool", command, "-e", spec, "-r", str(folder), *overrides], environment


def write_spec(folder: Path, spec: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(dict(spec)), encoding="utf-8")


def rtdetr(folder: Path, command: str, *overrides: str) -> None:
    """Run a command with the spec of a folder; its output is in `console.txt`."""
    arguments, environment = command_line(folder, command, *overrides)
    with (folder / "console.txt").open("ab") as log:
        if subprocess.run(arguments, stdout=log, stderr=log, env=environment).returncode:
            sys.exit(f"{command} failed; see {folder / 'console.txt'}")


def train(folder: Path, spec: Mapping[str, Any]) -> dict[str, float]:
    """Train in a separate process unless done; returns its wall and processor seconds (of the last process)."""
    write_spec(folder, spec)
    record = folder / "seconds.yaml"
    if not record.exists():
        wall, processor = time.monotonic(), processor_seconds()
        rtdetr(folder, "train")
        seconds = {"wall": time.monotonic() - wall, "processor": processor_seconds() - processor}
        record.write_text(yaml.safe_dump({name: round(value, 1) for name, value in seconds.items()}))
    recorded: dict[str, float] = yaml.safe_load(record.read_text())
    return recorded


def processor_seconds() -> float:
    """CPU time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def curve(folder: Path, name: str = "val/mAP_50_95") -> dict[int, float]:
    """The score after each validated epoch; epochs count from 1. An undefined score is 0."""
    (path,) = sorted((folder / "train" / "csv_logs").rglob("metrics.csv"))
    with path.open(encoding="utf-8", newline="") as file:
        return {int(row["epoch"]) + 1: float(row[name]) for row in csv.DictReader(file) if row.get(name)}


def epochs_to(scores: Mapping[int, float], goal: float) -> int | None:
    """The first epoch with at least this score."""
    return next((epoch for epoch, score in sorted(scores.items()) if score >= goal), None)


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± sample standard deviation."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"
