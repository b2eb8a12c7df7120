"""Does pruning pay off? Search with TPE and pruning, then at random with the same number of training epochs.

    python scripts/compare_search.py demo/search

draws the sample dataset and runs `rtdetr automl` three times: `trials` trials with TPE and pruning; as many random
trials, all equally long, that train the same number of epochs in total; and full-length random trials, as many as that
total allows. The first search is killed with SIGKILL while a trial is running and resumed with the same command.
`results.json` and `results.md` have the best score of each. Running the script again resumes it.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sample_runs import absolute, command_line, draw, merged, small_spec, write_spec

RANGES = {
    "train.optim.lr": {"min": 2e-5, "max": 5e-3, "log": True},
    "train.optim.lr_backbone": {"min": 2e-5, "max": 5e-3, "log": True},
    "train.optim.weight_decay": {"min": 1e-5, "max": 1e-2, "log": True},
    "model.dec_layers": {"choices": [1, 2, 3]},
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    draw(options.out / "data", train=options.images)
    rows: dict[str, dict[str, Any]] = {}
    killed = kill_and_resume(options)
    rows["TPE, ASHA pruning"] = summary(options.out / "pruned")
    total = rows["TPE, ASHA pruning"]["epochs"]
    write(options, rows, killed)
    for name, trials, epochs in (
        ("random, short trials", options.trials, max(1, round(total / options.trials))),
        ("random, full length", max(1, round(total / options.epochs)), options.epochs),
    ):
        folder = options.out / name.split(", ")[1].replace(" ", "_")
        wait_for(automl(options, folder, trials, epochs, "random", "none"), folder)
        rows[name] = summary(folder)
        write(options, rows, killed)
    print((options.out / "results.md").read_text(encoding="utf-8"))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=absolute, help="folder to write to")
    parser.add_argument("--images", type=int, default=400, help="training images (default 400)")
    parser.add_argument("--size", type=int, default=96, help="side of the network's input (default 96)")
    parser.add_argument("--backbone", default="resnet_18", help="model.backbone (default resnet_18)")
    parser.add_argument("--trials", type=int, default=12, help="trials of the first two searches (default 12)")
    parser.add_argument("--epochs", type=int, default=9, help="epochs of a trial that is not pruned (default 9)")
    parser.add_argument("--kill-in-trial", type=int, default=1, help="trial in which the search is killed (default 1)")
    return parser.parse_args(arguments)


def spec_of(options: argparse.Namespace, trials: int, epochs: int, sampler: str, pruner: str) -> dict[str, Any]:
    spec = small_spec(options.out / "data", options.size, epochs, options.backbone)
    del spec["train"]["optim"]["lr"], spec["train"]["optim"]["lr_backbone"]
    changes = {
        "train": {
            "validation_interval": 1,
            "checkpoint_interval": 1,
            "optim": {"lr_steps": [max(1, round(0.8 * epochs))]},
        },
        "automl": {
            "trials": trials,
            "fields": [],
            "parameters": RANGES,
            "sampler": sampler,
            "pruner": pruner,
            "workers": 1,
        },
    }
    return merged(spec, changes)


def automl(
    options: argparse.Namespace, folder: Path, trials: int, epochs: int, sampler: str, pruner: str
) -> subprocess.Popen[bytes]:
    """Start a search in a process of its own, or resume it."""
    write_spec(folder, spec_of(options, trials, epochs, sampler, pruner))
    command, environment = command_line(folder, "automl")
    with (folder / "console.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def kill_and_resume(options: argparse.Namespace) -> dict[str, Any]:
    """Run the search with pruning, kill it once when half of a trial is trained, and resume it."""
    folder, number = options.out / "pruned", options.kill_in_trial
    trial = folder / "automl" / f"trial_{number:04d}"
    record = folder / "killed.json"
    arguments = (options, folder, options.trials, options.epochs, "tpe", "asha")
    search = automl(*arguments)
    if not record.exists():
        trained = trial / f"model_epoch_{options.epochs // 2:03d}.pth"
        while not trained.exists() and search.poll() is None:
            time.sleep(0.5)
        search.send_signal(signal.SIGKILL)
        search.wait()
        states = [trial["state"] for trial in trials_of(folder)]
        finished = sum(state in ("finished", "pruned") for state in states)
        record.write_text(json.dumps({"trial": number, "exit_code": search.returncode, "finished_before": finished}))
        search = automl(*arguments)
    wait_for(search, folder)
    resumed = re.findall(r"Resuming from (\S+)", (trial / "log.txt").read_text(encoding="utf-8"))
    content: dict[str, Any] = json.loads(record.read_text())
    return {**content, "resumed_from": [Path(path).name for path in resumed], "trials": len(trials_of(folder))}


def wait_for(search: subprocess.Popen[bytes], folder: Path) -> None:
    if search.wait() != 0:
        sys.exit(f"the search failed; see {folder / 'console.txt'}")


def trials_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / "automl" / "automl.json"
    return json.loads(path.read_text(encoding="utf-8"))["trials"] if path.exists() else []


def summary(folder: Path) -> dict[str, Any]:
    """What a search has cost and found; each trial is validated once per epoch."""
    content = json.loads((folder / "automl" / "automl.json").read_text(encoding="utf-8"))
    trials = content["trials"]
    return {
        "trials": len(trials),
        "pruned": sum(trial["state"] == "pruned" for trial in trials),
        "epochs": sum(len(trial["scores"]) for trial in trials),
        "best": content["best_score"],
        "values": content["best_values"],
        "scores": sorted((trial["score"] for trial in trials if trial["score"] is not None), reverse=True),
    }


def write(options: argparse.Namespace, rows: dict[str, dict[str, Any]], killed: dict[str, Any]) -> None:
    (options.out / "results.json").write_text(json.dumps({"searches": rows, "killed": killed}, indent=2) + "\n")
    lines = ["| search | trials | pruned | epochs in total | best mAP |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {r['trials']} | {r['pruned']} | {r['epochs']} | {r['best']:.3f} |" for name, r in rows.items()
    ]
    resumed = ", ".join(killed["resumed_from"]) or "no checkpoint, because the trial had been pruned"
    lines += [
        "",
        f"The first search was killed in trial {killed['trial']} (exit code {killed['exit_code']}), with "
        f"{killed['finished_before']} trials done. The same command resumed the trial from {resumed}, and ended with "
        f"{killed['trials']} trials.",
    ]
    (options.out / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
