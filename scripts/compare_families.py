"""D-FINE next to RT-DETR: the same data, rates and number of steps, with several seeds.

    python scripts/compare_families.py demo/families

trains both detectors of `specs/dfine_demo.yaml` from random weights with each seed. `results.md` and `results.json`
have the scores after each validation and the processor time of the runs. Running the script again resumes it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from sample_runs import ROOT, absolute, curve, draw, mean_and_spread, merged, sources, train

FAMILIES = {"dfine": "D-FINE", "rtdetr": "RT-DETR"}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    data = draw(options.out / "data", train=options.images, val=80, size=256)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in FAMILIES}
    for seed in options.seeds:
        for family in FAMILIES:
            folder = options.out / family / f"seed_{seed}"
            seconds = train(folder, spec_of(options, data, family, seed))
            scores = {"mAP": curve(folder), "mAP50": curve(folder, "val/mAP_50")}
            runs[family].append({"seed": seed, "seconds": seconds, **scores})
            (options.out / "results.json").write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")
            (options.out / "results.md").write_text(text_of(runs), encoding="utf-8")
    print(text_of(runs))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=absolute, help="folder to write to")
    parser.add_argument("--images", type=int, default=400, help="training images, in batches of 4 (default 400)")
    parser.add_argument("--epochs", type=int, default=10, help="of each run; the rate drops in the last (default 10)")
    parser.add_argument("--size", type=int, default=160, help="side of the network's input (default 160)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    return parser.parse_args(arguments)


def spec_of(options: argparse.Namespace, data: Path, family: str, seed: int) -> dict[str, Any]:
    spec = yaml.safe_load((ROOT / "specs" / "dfine_demo.yaml").read_text(encoding="utf-8"))
    changes = {
        "wandb": {"enable": False},
        "model": {"arch": family},
        "dataset": {
            **sources(data),
            "augmentation": {"train_spatial_size": [options.size] * 2, "eval_spatial_size": [options.size] * 2},
        },
        "train": {
            "seed": seed,
            "num_epochs": options.epochs,
            "validation_interval": max(1, options.epochs // 2),
            "checkpoint_interval": options.epochs,
            "report": False,
            "tensorboard": False,
            "optim": {"lr_steps": [options.epochs - 1]},
        },
    }
    return merged(spec, changes)


def text_of(runs: dict[str, list[dict[str, Any]]]) -> str:
    """A row per family and validation: mean and spread over the seeds, then each seed."""
    lines = ["| family | epoch | mAP | per seed | mAP50 | processor s |", "|---|---|---|---|---|---|"]
    for family, rows in runs.items():
        if not rows:
            continue
        seconds = statistics.mean(row["seconds"]["processor"] for row in rows)
        for epoch in rows[0]["mAP"]:
            scores, half = ([row[name][epoch] for row in rows] for name in ("mAP", "mAP50"))
            each = ", ".join(f"{score:.3f}" for score in scores)
            cells = (FAMILIES[family], str(epoch), mean_and_spread(scores), each, mean_and_spread(half))
            lines.append(f"| {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
