"""The last lines of `make demo`: the score, whether it is good enough, and where the annotated pictures are."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="the results folder of the three commands")
    parser.add_argument("--require", type=float, default=0.0, metavar="MAP50", help="exit with 1 below this mAP50")
    options = parser.parse_args(arguments)
    scores = options.results / "evaluate" / "results.json"
    if not scores.exists():
        print(f"{scores} is missing: the evaluation did not finish", file=sys.stderr)
        return 1
    score = json.loads(scores.read_text(encoding="utf-8"))
    if score["mAP"] is None:
        print("the validation images have no objects, so that there is no score", file=sys.stderr)
        return 1
    pictures = sorted((options.results / "inference" / "images_annotated").rglob("*.jpg"))
    print(f"\nDemo: mAP {score['mAP']:.3f}, mAP50 {score['mAP50']:.3f} on the validation images")
    for row in score["per_class"]:
        print(f"  {row['name']:10} AP50 " + ("-" if row["AP50"] is None else f"{row['AP50']:.3f}"))
    if not pictures:
        print(f"no annotated pictures are in {options.results}", file=sys.stderr)
        return 1
    print(f"{len(pictures)} annotated pictures are in {pictures[0].parent}, for example {pictures[0].name}")
    if score["mAP50"] < options.require:
        print(f"mAP50 is below {options.require:.2f}: something is wrong", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
