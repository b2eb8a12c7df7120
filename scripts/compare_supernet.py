"""One run with `train.supernet` against three detectors that are trained individually.

    python scripts/compare_supernet.py demo/supernet

draws the sample dataset, trains a supernet and scores its sub-detectors with `rtdetr automl`, and trains three of them
individually with the same recipe for as many epochs. The learning rate is constant, so that the checkpoint after a
third of the epochs shows what the three reach at the cost of the supernet together. Scores are those of the last
checkpoint (averaged weights) on the validation images. `results.json` and `results.md` have the figures; running the
script again continues where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sample_runs import absolute, draw, merged, rtdetr, small_spec, train

LAYERS, QUERIES = 3, 30  # of the whole model
CHOICES = {"decoder_layers": [1, 2], "num_queries": [15]}  # and a smaller resolution
ALONE = {"small": (False, 1, 15), "medium": (True, 1, 30), "large": (True, 3, 30)}  # whole resolution, layers, queries


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    draw(options.out / "data", train=options.images)
    supernet = {"enabled": True, "resolution": [options.small], **CHOICES}
    seconds = {"supernet": wall(options, "supernet", spec_of(options, options.size, LAYERS, QUERIES, supernet))}
    for name, (whole, layers, queries) in ALONE.items():
        seconds[name] = wall(options, name, spec_of(options, side_of(options, whole), layers, queries))
    grid = score_grid(options)
    rows = [compare(options, name, grid) for name in ALONE]
    content = {"seconds": seconds, "epochs": options.epochs, "alone": rows, "grid": grid["trials"],
               "pareto_front": grid["pareto_front"],
               "grid_seconds": sum(trial["seconds"] for trial in grid["trials"])}  # fmt: skip
    (options.out / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (options.out / "results.md").write_text(text_of(content), encoding="utf-8")
    print(text_of(content))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=absolute, help="folder to write to")
    parser.add_argument("--images", type=int, default=300, help="training images (default 300)")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of each run, a multiple of 3 (default 12)")
    parser.add_argument("--size", type=int, default=96, help="side of the whole model's input (default 96)")
    parser.add_argument("--small", type=int, default=64, help="the other side (default 64)")
    parser.add_argument("--backbone", default="timm/test_resnet", help="model.backbone (default timm/test_resnet)")
    return parser.parse_args(arguments)


def side_of(options: argparse.Namespace, whole: bool) -> int:
    side: int = options.size if whole else options.small
    return side


def spec_of(
    options: argparse.Namespace, side: int, layers: int, queries: int, supernet: dict[str, Any] | None = None
) -> dict[str, Any]:
    spec = small_spec(options.out / "data", side, options.epochs, options.backbone, layers, queries)
    changes: dict[str, Any] = {
        "train": {"validation_interval": options.epochs, **({"supernet": supernet} if supernet else {})},
        "benchmark": {"seconds": 2.0, "on_cpu": True, "threads": 1},
    }
    return merged(spec, changes)


def wall(options: argparse.Namespace, name: str, spec: dict[str, Any]) -> float:
    """Train unless done; the seconds that it took."""
    return train(options.out / name, spec)["wall"]


def checkpoint_of(options: argparse.Namespace, name: str, epochs: int) -> Path:
    path: Path = options.out / name / "train" / f"model_epoch_{epochs - 1:03d}.pth"
    return path


def score_grid(options: argparse.Namespace) -> dict[str, Any]:
    folder = options.out / "supernet"
    rtdetr(folder, "automl", f"automl.supernet_checkpoint={checkpoint_of(options, 'supernet', options.epochs)}")
    content: dict[str, Any] = json.loads((folder / "automl" / "automl.json").read_text(encoding="utf-8"))
    return content


def compare(options: argparse.Namespace, name: str, grid: dict[str, Any]) -> dict[str, Any]:
    """A detector that was trained individually, next to the sub-detector with the same network."""
    whole, layers, queries = ALONE[name]
    values = {"resolution": side_of(options, whole), "decoder_layers": layers, "num_queries": queries}
    (trial,) = [trial for trial in grid["trials"] if trial["values"] == values]
    scores = {epochs: score(options, name, epochs) for epochs in (options.epochs, options.epochs // 3)}
    return {"name": name, "values": values, "latency": trial["latency"], "supernet": trial["score"],
            "same_epochs": scores[options.epochs], "third_of_epochs": scores[options.epochs // 3]}  # fmt: skip


def score(options: argparse.Namespace, name: str, epochs: int) -> float:
    from rtdetr_tool.formats.opening import open_model
    from rtdetr_tool.spec import read_spec
    from rtdetr_tool.workflows.detection import score_split

    loaded = read_spec(options.out / name / "spec.yaml", [])
    model = open_model(str(checkpoint_of(options, name, epochs)), loaded)
    return float(score_split(model, "val", 0.0).evaluator.compute().map or 0.0)


def text_of(content: dict[str, Any]) -> str:
    epochs = content["epochs"]
    lines = [
        f"| detector | latency (ms) | supernet, {epochs} epochs | alone, {epochs} epochs | alone, {epochs // 3} |",
        "|---|---|---|---|---|",
    ]
    for row in content["alone"]:
        size = "{resolution} px, {decoder_layers} layers, {num_queries} queries".format(**row["values"])
        scores = (row["supernet"], row["same_epochs"], row["third_of_epochs"])
        lines.append(f"| {size} | {row['latency']:.2f} | " + " | ".join(f"{score:.3f}" for score in scores) + " |")
    lines += ["", "| sub-detector on the Pareto front | latency (ms) | mAP |", "|---|---|---|"]
    for number in content["pareto_front"]:
        (trial,) = [trial for trial in content["grid"] if trial["number"] == number]
        size = "{resolution} px, {decoder_layers} layers, {num_queries} queries".format(**trial["values"])
        lines.append(f"| {size} | {trial['latency']:.2f} | {trial['score']:.3f} |")
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in content["seconds"].items())
    lines += ["", f"Training: {seconds}. Scoring the grid: {content['grid_seconds']:.0f} s."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
