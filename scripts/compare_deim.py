"""DEIM's training (arXiv:2412.04234), with and without each of its parts: epochs to a given mAP, with several seeds.

    python scripts/compare_deim.py demo/deim

trains a small RT-DETR from random weights on the drawn dataset: plainly, with each part alone (matchability-aware loss,
dense one-to-one matching through mosaic and mixup, flat-cosine schedule), and with all of them. Everything else is
equal, including the other steps of augmentation and the epochs in which they are applied (those of the policy `deim`).
`results.md`, `results.json` and `curves.png` have the scores after each epoch. Running the script again resumes it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sample_runs import absolute, curve, draw, epochs_to, mean_and_spread, merged, small_spec, train

PARTS = {"loss": "`mal` loss", "dense": "mosaic and mixup", "schedule": "flat-cosine schedule"}
# Name of a variant -> its parts.
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (), **{part: (part,) for part in PARTS}, "deim": tuple(PARTS)
}  # fmt: skip
Curves = dict[str, list[dict[int, float]]]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    data = draw(options.out / "data", train=options.images)
    curves: Curves = {}
    seconds: dict[str, list[float]] = {}
    for seed in options.seeds:  # seed by seed, so that variants can be compared at any time
        for variant in options.variants:
            folder = options.out / variant / f"seed_{seed}"
            seconds.setdefault(variant, []).append(train(folder, spec_of(options, data, variant, seed))["processor"])
            curves.setdefault(variant, []).append(curve(folder))
            content = {"seeds": options.seeds, "curves": curves, "processor_seconds": seconds}
            (options.out / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            (options.out / "results.md").write_text(text_of(curves, options.goals), encoding="utf-8")
    plot(curves, options.out / "curves.png")
    print(text_of(curves, options.goals))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=absolute, help="folder to write to")
    parser.add_argument("--images", type=int, default=200, help="training images (default 200)")
    parser.add_argument("--epochs", type=int, default=14, help="epochs of each run (default 14)")
    parser.add_argument("--size", type=int, default=96, help="side of the network's input (default 96)")
    parser.add_argument("--backbone", default="timm/test_resnet", help="model.backbone (default timm/test_resnet)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument(
        "--goals", type=float, nargs="*", help="mAP to reach (default: half and all of the mean of plain at the end)"
    )
    return parser.parse_args(arguments)


def spec_of(options: argparse.Namespace, data: Path, variant: str, seed: int) -> dict[str, Any]:
    parts, epochs = VARIANTS[variant], options.epochs
    spec = small_spec(data, options.size, epochs, options.backbone)
    augmentation: dict[str, Any] = {"policy": "deim"}
    if "dense" not in parts:
        augmentation |= {"mosaic_prob": 0.0, "mixup_prob": 0.0}
    changes: dict[str, Any] = {
        "dataset": {"augmentation": augmentation},
        "train": {"seed": seed, "validation_interval": 1, "checkpoint_interval": epochs},
    }
    if "loss" in parts:
        changes["model"] = {"loss_types": ["mal", "boxes"], "gamma": 1.5}
    if "schedule" in parts:
        changes["train"]["optim"] = {
            "lr_scheduler": "FlatCosine",
            "lr_flat_epochs": epochs // 2,
            "lr_final_epochs": round(0.14 * epochs),
            "lr_min_factor": 0.5,
        }
    return merged(spec, changes)


def name_of(variant: str) -> str:
    if variant in PARTS:
        return PARTS[variant]
    return "none of them" if variant == "plain" else "all three"


def goals_of(curves: Curves) -> list[float]:
    """Half and all of what plain training reaches in the end, on average."""
    last = [scores[max(scores)] for scores in curves.get("plain", [])]
    mean = sum(last) / len(last) if last else 0.0
    return [round(mean / 2, 3), round(mean, 3)]


def text_of(curves: Curves, goals: Sequence[float] | None) -> str:
    """A row per variant: scores at the end, and the first epoch at each goal, seed by seed (`-`: not reached)."""
    goals = goals or goals_of(curves)
    titles = ["parts of DEIM", "mAP at the end", "per seed", "best mAP"]
    titles += [f"epochs to {goal:.3f}" for goal in goals]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for variant, runs in curves.items():
        last = [scores[max(scores)] for scores in runs]
        cells = [name_of(variant), mean_and_spread(last), ", ".join(f"{score:.3f}" for score in last)]
        cells.append(mean_and_spread([max(scores.values()) for scores in runs]))
        cells += [", ".join(str(epochs_to(scores, goal) or "-") for scores in runs) for goal in goals]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(curves: Mapping[str, Sequence[Mapping[int, float]]], path: Path) -> None:
    """Mean curve of each variant, with the range over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for variant, runs in curves.items():
        epochs = sorted(runs[0])
        columns = [[scores[epoch] for scores in runs] for epoch in epochs]
        (line,) = axes.plot(epochs, [sum(column) / len(column) for column in columns], label=name_of(variant))
        low, high = [min(column) for column in columns], [max(column) for column in columns]
        axes.fill_between(epochs, low, high, alpha=0.15, color=line.get_color())
    axes.set(xlabel="epoch", ylabel="validation mAP", title="Parts of DEIM: mean and range over seeds")
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
