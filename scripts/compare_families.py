"""D-FINE next to RT-DETR: the same data, rates and number of steps, with several seeds.

    python scripts/compare_families.py demo/families

trains both detectors of `specs/dfine_demo.yaml` from random weights with each seed, and the RT-DETR also with the
backbone of the D-FINE, with which both cost about the same. `results.md` and `results.json` have the scores after each
validation, the processor time of the runs, and the work of the networks. Running the script again resumes it.
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
from sample_runs import NUM_CLASSES, ROOT, absolute, curve, draw, mean_and_spread, merged, sources, train

# Name of a detector -> its title, and its changes of `model`.
DETECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "dfine": ("D-FINE, HGNetV2 B0", {"arch": "dfine"}),
    "rtdetr_b0": ("RT-DETR, HGNetV2 B0", {"arch": "rtdetr", "backbone": "timm/hgnetv2_b0"}),
    "rtdetr": ("RT-DETR, ResNet-18-D", {"arch": "rtdetr"}),
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    data = draw(options.out / "data", train=options.images, val=80, size=256)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.detectors}
    for seed in options.seeds:
        for name in options.detectors:
            spec = spec_of(options, data, name, seed)
            folder = options.out / name / f"seed_{seed}"
            seconds = train(folder, spec)
            scores = {"mAP": curve(folder), "mAP50": curve(folder, "val/mAP_50")}
            runs[name].append({"seed": seed, "seconds": seconds, "gflops": work_of(spec, options.size), **scores})
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
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=list(DETECTORS))
    return parser.parse_args(arguments)


def spec_of(options: argparse.Namespace, data: Path, name: str, seed: int) -> dict[str, Any]:
    halves = 2 if options.epochs % 2 == 0 else 1  # the last epoch is always validated
    spec = yaml.safe_load((ROOT / "specs" / "dfine_demo.yaml").read_text(encoding="utf-8"))
    changes = {
        "wandb": {"enable": False},
        "model": DETECTORS[name][1],
        "dataset": {
            **sources(data),
            "augmentation": {"train_spatial_size": [options.size] * 2, "eval_spatial_size": [options.size] * 2},
        },
        "train": {
            "seed": seed,
            "num_epochs": options.epochs,
            "validation_interval": options.epochs // halves,
            "checkpoint_interval": options.epochs,
            "report": False,
            "tensorboard": False,
            "optim": {"lr_steps": [options.epochs - 1]},
        },
    }
    return merged(spec, changes)


def work_of(spec: dict[str, Any], side: int) -> float:
    """GFLOPs of convolutions and matrix products for one image in inference."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from rtdetr_tool.models.build import build_detector
    from rtdetr_tool.spec import spec_from_dict

    detector = build_detector(spec_from_dict(spec).model, NUM_CLASSES).deploy()
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        detector(torch.zeros(1, 3, side, side))
    return counter.get_total_flops() / 1e9


def text_of(runs: dict[str, list[dict[str, Any]]]) -> str:
    """A row per detector and validation: mean and spread over the seeds, then each seed."""
    titles = ("detector", "epoch", "mAP", "per seed", "mAP50", "processor s", "GFLOPs")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, rows in runs.items():
        if not rows:
            continue
        seconds = statistics.mean(row["seconds"]["processor"] for row in rows)
        for epoch in rows[0]["mAP"]:
            scores, half = ([row[score][epoch] for row in rows] for score in ("mAP", "mAP50"))
            each = ", ".join(f"{score:.3f}" for score in scores)
            cells = (DETECTORS[name][0], str(epoch), mean_and_spread(scores), each, mean_and_spread(half))
            lines.append(f"| {' | '.join(cells)} | {seconds:.0f} | {rows[0]['gflops']:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
