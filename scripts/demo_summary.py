"""Print the last lines of `make demo`: the score, whether it is good enough, and the folder of annotated images."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="results folder of the three commands")
    parser.add_argument(
        "--require", type=float, default=0.0, metavar="MAP50", help="minimum mAP50; the exit code is 1 below it"
    )
    options = parser.parse_args(arguments)
    scores = options.results / "evaluate" / "results.json"
    if not scores.exists():
        print(f"{scores} is missing: the evaluation did not finish", file=sys.stderr)
        return 1
    score = json.loads(scores.read_text(encoding="utf-8"))
    if score["mAP"] is None:
        print("the validation images have no objects, so there is no score", file=sys.stderr)
        return 1
    images = sorted((options.results / "inference" / "images_annotated").rglob("*.jpg"))
    print(f"\nDemo: mAP {score['mAP']:.3f}, mAP50 {score['mAP50']:.3f} on the validation images")
    for row in score["per_class"]:
        print(f"  {row['name']:10} AP50 " + ("-" if row["AP50"] is None else f"{row['AP50']:.3f}"))
    if not images:
        print(f"no annotated images in {options.results}", file=sys.stderr)
        return 1
    print(f"{len(images)} annotated images are in {images[0].parent}, for example {images[0].name}")
    if score["mAP50"] < options.require:
        print(f"mAP50 is below {options.require:.2f}: something is wrong", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
