"""Does distillation help? Train a teacher, then small students with and without it for the same number of steps.

    python scripts/distillation_experiment.py run demo/distillation
    python scripts/distillation_experiment.py run demo/bccd --data ../shared/data/bccd --classes 3
    python scripts/distillation_experiment.py cost demo/cost

`run` draws the sample dataset (or uses a COCO folder with the same layout), trains the teacher, then each variant with
each seed, and scores the last weights of each run on the test split, which was not used before. Variants share data,
initial weights and augmentation of a seed. Running the same command again skips finished runs and resumes interrupted
ones; `results.md` and `results.json` are updated after each run.

`cost` compares a training step with a distillation step: CPU and wall seconds, and peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SPEC = ROOT / "specs" / "distill_demo.yaml"
NUM_CLASSES = 5  # of the sample dataset


def binding(name: str, criterion: str, weight: float) -> str:
    return f"{{teacher_module_name: {name}, student_module_name: {name}, criterion: {criterion}, weight: {weight}}}"


SRCS = binding("srcs", "IOU", 20)
TOKENS = binding("decoder.enc_score_head", "L2", 1)  # class logits of all positions, before query selection
LOGITS = (binding("pred_logits", "KL", 2), binding("pred_boxes", "IOU", 1))

# Compared variants: name -> bindings; none = plain training.
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "srcs": (SRCS,),
    "logits": LOGITS,
    "tokens": (SRCS, TOKENS),
    "both": (SRCS, *LOGITS),
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.command == "step":
        print(json.dumps(measure_steps(options)))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    return compare_cost(options) if options.command == "cost" else run_all(options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "cost", "step"), help="step is started by cost")
    parser.add_argument("out", type=absolute, help="folder to write to")
    parser.add_argument("--data", type=absolute, help="{train,val,test}/ and annotations/; default: drawn")
    parser.add_argument("--classes", type=int, default=NUM_CLASSES, help="dataset.num_classes")
    parser.add_argument("--images", type=int, default=300, help="training images of the sample dataset (default 300)")
    parser.add_argument("--test-images", type=int, default=300, help="test images of the sample dataset (default 300)")
    parser.add_argument("--size", type=int, default=160, help="side of the network's input (default 160)")
    parser.add_argument("--teacher", default="resnet_34d", help="backbone of the teacher (default resnet_34d)")
    parser.add_argument("--teacher-width", type=int, default=160, help="hidden_dim of the teacher (default 160)")
    parser.add_argument("--teacher-epochs", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=10, help="of each student (default 10)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["plain", "srcs", "logits"])
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="key=value", help="additional overrides for all students"
    )
    parser.add_argument("--steps", type=int, default=12, help="measured steps of cost and step")
    return parser.parse_args(arguments)


def absolute(path: str) -> Path:
    return Path(path).resolve()


# Runs


def run_all(options: argparse.Namespace) -> int:
    data = options.data or draw(options)
    teacher = options.out / "teacher"
    rows = {"teacher": [score(options, data, teacher, 0, None)]}
    for seed in options.seeds:  # seed by seed, so that variants can be compared at any time
        for variant in options.variants:
            folder = options.out / variant / f"seed_{seed}"
            rows.setdefault(variant, []).append(score(options, data, folder, seed, VARIANTS[variant]))
            write_results(options, rows)
    print((options.out / "results.md").read_text(encoding="utf-8"))
    return 0


def draw(options: argparse.Namespace) -> Path:
    folder = options.out / "data"
    if not (folder / "classmap.txt").exists():
        program = [sys.executable, str(ROOT / "scripts" / "make_sample_dataset.py"), str(folder), "--size", "256"]
        counts = ["--train", str(options.images), "--val", "60", "--test", str(options.test_images)]
        subprocess.run([*program, *counts], check=True)
    return folder


def score(
    options: argparse.Namespace, data: Path, folder: Path, seed: int, bindings: Sequence[str] | None
) -> dict[str, float]:
    """Train (with bindings: distill; None: the teacher) unless done, score on the test split, and return the scores."""
    results = folder / "evaluate" / "results.json"
    if not results.exists():
        command = "distill" if bindings else "train"
        overrides = settings(options, data, bindings is None)
        start = time.perf_counter()
        teacher = options.out / "teacher" / "train" / "rtdetr_model_latest.pth"
        rtdetr(command, folder, [*overrides, f"train.seed={seed}", *following(teacher, bindings)])
        minutes = (time.perf_counter() - start) / 60
        weights = folder / command / "rtdetr_model_latest.pth"
        rtdetr("evaluate", folder, [*overrides, f"evaluate.checkpoint={weights}", source(data, "test")])
        (folder / "minutes.json").write_text(json.dumps(minutes))
    scores = json.loads(results.read_text(encoding="utf-8"))
    minutes = json.loads((folder / "minutes.json").read_text()) if (folder / "minutes.json").exists() else 0.0
    return {"mAP": scores["mAP"], "mAP50": scores["mAP50"], "minutes": minutes}


def following(teacher: Path, bindings: Sequence[str] | None) -> list[str]:
    """Overrides for a student of this teacher; none without bindings."""
    if not bindings:
        return []
    return [f"distill.bindings=[{', '.join(bindings)}]", f"distill.pretrained_teacher_model_path={teacher}"]


def settings(options: argparse.Namespace, data: Path, teacher: bool) -> list[str]:
    """Overrides of specs/distill_demo.yaml; the learning rate drops after four fifths of the epochs."""
    epochs = options.teacher_epochs if teacher else options.epochs
    width = options.teacher_width
    model = [
        f"model.backbone={options.teacher}",
        f"model.hidden_dim={width}",
        f"model.feat_channels=[{width},{width},{width}]",
        f"model.dim_feedforward={4 * width}",
    ]
    size = f"[{options.size},{options.size}]"
    return [
        "wandb.enable=false",
        source(data, "train"),
        source(data, "val"),
        f"dataset.num_classes={options.classes}",
        f"dataset.augmentation.train_spatial_size={size}",
        f"dataset.augmentation.eval_spatial_size={size}",
        f"train.num_epochs={epochs}",
        f"train.validation_interval={epochs}",
        f"train.checkpoint_interval={max(epochs // 4, 1)}",
        f"train.optim.lr_steps=[{max(epochs * 4 // 5, 1)}]",
        *(model if teacher else options.set),
    ]


def source(data: Path, split: str) -> str:
    entry = f"{{image_dir: '{data / split}', json_file: '{data}/annotations/instances_{split}.json'}}"
    return f"dataset.{split}_data_sources={f'[{entry}]' if split == 'train' else entry}"


def rtdetr(command: str, folder: Path, overrides: Sequence[str]) -> None:
    program = [sys.executable, "-m", "rtdetr_tool", command, "-e", str(SPEC), "-r", str(folder), *overrides]
    subprocess.run(program, check=True)


def write_results(options: argparse.Namespace, rows: dict[str, list[dict[str, float]]]) -> None:
    """Write mean and spread over the seeds, and the difference from plain training per seed."""
    lines = [
        f"Teacher {options.teacher}, width {options.teacher_width}, {options.teacher_epochs} epochs; students "
        f"{options.epochs} epochs, {options.size} px; seeds {', '.join(map(str, options.seeds))}; scores of the test "
        "split.",
        "",
        "| run | mAP | spread | mAP50 | per seed | difference from plain, per seed | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    plain = [row["mAP"] for row in rows.get("plain", [])]
    for name, runs in rows.items():
        scores = [row["mAP"] for row in runs]
        spread = f"{statistics.stdev(scores):.3f}" if len(scores) > 1 else "-"
        gains = [a - b for a, b in zip(scores, plain, strict=False)] if name not in ("teacher", "plain") else []
        against = f"{statistics.mean(gains):+.3f} ({', '.join(f'{gain:+.3f}' for gain in gains)})" if gains else ""
        lines.append(
            f"| {name} | {statistics.mean(scores):.3f} | {spread} | {statistics.mean(r['mAP50'] for r in runs):.3f} | "
            f"{', '.join(f'{value:.3f}' for value in scores)} | {against} | "
            f"{statistics.mean(r['minutes'] for r in runs):.1f} |"
        )
    (options.out / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (options.out / "results.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


# Cost


def compare_cost(options: argparse.Namespace) -> int:
    """A table of train and distill steps, each measured in a separate process."""
    data = options.data or draw(options)
    lines = ["| step | processor s | wall s | peak memory MiB |", "|---|---|---|---|"]
    for variant in ("plain", *(name for name in options.variants if name != "plain")):
        program = [sys.executable, str(Path(__file__).resolve()), "step", str(options.out), "--data", str(data)]
        program += ["--classes", str(options.classes), "--variants", variant, "--steps", str(options.steps)]
        program += ["--size", str(options.size), "--teacher", options.teacher, "--set", *options.set]
        program += ["--teacher-width", str(options.teacher_width)]
        ran = subprocess.run(program, check=True, capture_output=True, text=True)
        measured = json.loads(ran.stdout.strip().splitlines()[-1])
        lines.append(f"| {variant} | {measured['processor']:.3f} | {measured['wall']:.3f} | {measured['peak']:.0f} |")
    (options.out / "cost.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0


def measure_steps(options: argparse.Namespace) -> dict[str, float]:
    """Median of forward, backward and update on one batch, without the loader; the teacher has random weights."""
    import torch

    from rtdetr_tool.models.build import build_detector
    from rtdetr_tool.spec import load_spec
    from rtdetr_tool.training.datamodule import DetectionDataModule
    from rtdetr_tool.training.distill import DistillModule
    from rtdetr_tool.training.module import DetectorModule

    bindings = VARIANTS[options.variants[0]]
    common = settings(options, options.data, teacher=False)
    overrides = [*common, *following(Path("none.pth"), bindings)]
    spec = load_spec(SPEC, overrides, "distill" if bindings else "train")
    datamodule = DetectionDataModule(spec)
    batch = next(iter(datamodule.train_dataloader()))
    if bindings:
        large = load_spec(SPEC, settings(options, options.data, teacher=True), "train").model
        module = DistillModule(spec, datamodule.class_map, build_detector(large, options.classes), datamodule.class_map)
    else:
        module = DetectorModule(spec, datamodule.class_map)
    optimizer = module.configure_optimizers()["optimizer"]
    times: list[tuple[float, float]] = []
    for _ in range(options.steps + 3):
        start = (time.process_time(), time.perf_counter())
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=spec.train.precision == "bf16"):
            loss = module.compute_losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    kept = times[3:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "processor": statistics.median(t[0] for t in kept), "wall": statistics.median(t[1] for t in kept), "peak": peak
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
