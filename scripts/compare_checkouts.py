"""Compare two checkouts of this project: CPU time of a training step and of inference, alternating in two processes.

    python scripts/compare_checkouts.py OLD NEW [--model r18 nano] [--rounds 10] [--size 320]

OLD and NEW are folders (`git worktree add OLD COMMIT`). Each is run by a process of its own with one thread, on the
same images, boxes and random weights. A step is that of our trainer: `DetectorModule.training_step`, backward,
clipping and the optimizer, batch 2, without activation checkpointing. Inference is `TorchRuntime.predict` of one image.
Losses of the first steps are printed as well: they are equal if a change only made the step faster.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODELS = {
    "r18": {"backbone": "resnet_18d", "expansion": 0.5, "dec_layers": 3},
    "nano": {"arch": "rfdetr", "rfdetr": {"variant": "nano"}},
}
CLASSES = {"r18": 80, "nano": None}  # RF-DETR's spec sets no number of classes
READY = "ready"
# Modules were renamed since; a checkout has one of each.
MOVED = {
    "classes": ("rtdetr_tool.ops.classes", "rtdetr_tool.data.classes"),
    "guard": ("rtdetr_tool.training.step_guard", "rtdetr_tool.training.finite"),
    "runtime": ("rtdetr_tool.formats.torch.runtime", "rtdetr_tool.runtimes.torch_runtime"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkouts", type=Path, nargs="*", metavar="OLD NEW", help="the two folders")
    parser.add_argument("--model", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds (default 10)")
    parser.add_argument("--size", type=int, default=320, help="side of the images (default 320)")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.model[0], options.size)
        return
    if len(options.checkouts) != 2:
        parser.error(f"two checkouts are expected, got {len(options.checkouts)}")
    for folder in options.checkouts:
        if not (folder / "rtdetr_tool").is_dir():
            parser.error(f"{folder} is not a checkout: it has no folder rtdetr_tool")
    for model in options.model:
        compare(model, options)


def compare(model: str, options: argparse.Namespace) -> None:
    from bench_timing import Times, machine, ratio

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        sides = [stack.enter_context(start(checkout, folder, model, options.size)) for checkout in options.checkouts]
        rounds: list[list[dict[str, float]]] = []
        for number in range(options.rounds):
            pair: list[dict[str, float]] = [{}, {}]
            for index in (0, 1) if number % 2 else (1, 0):
                pair[index] = measure(sides[index])
            rounds.append(pair)
        for side in sides:
            assert side.stdin
            side.stdin.close()
    print(f"{model}, {options.size} px, one thread each; {machine()}")
    for work_name in ("training step", "inference"):
        old, new = (Times(tuple(pair[index][work_name] for pair in rounds)) for index in (0, 1))
        middle, low, high = ratio(new, old)
        print(f"  {work_name:14s} old{old}   new{new}   ratio {middle:.3f} ({low:.3f} to {high:.3f})")
    for index, name in enumerate(("old", "new")):
        print(f"  losses, {name}: " + " ".join(f"{pair[index]['loss']:.4f}" for pair in rounds[:3]))


def start(checkout: Path, folder: str, model: str, size: int) -> subprocess.Popen[str]:
    """A process that does one round of work for each line it reads."""
    command = [sys.executable, str(Path(__file__).resolve()), "--work", "--model", model, "--size", str(size)]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    side = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    if read_line(side) != READY:
        raise SystemExit(f"{checkout}: the process did not start; its error is above")
    return side


def measure(side: subprocess.Popen[str]) -> dict[str, float]:
    assert side.stdin
    side.stdin.write("\n")
    side.stdin.flush()
    values: dict[str, float] = json.loads(read_line(side))
    return values


def read_line(side: subprocess.Popen[str]) -> str:
    """The next line that `work` wrote; others, such as warnings of a library, are skipped."""
    assert side.stdout
    for line in side.stdout:
        if line.strip() == READY or line.startswith("{"):
            return line.strip()
    raise SystemExit("a process ended early; its error is above")


def work(name: str, size: int) -> None:
    """Run in a process of its own, with the checkout on the path: a step and an inference for each line read."""
    import torch

    torch.set_num_threads(1)
    step, predict = build(name, size)
    step()
    predict()
    print(READY, flush=True)
    for _ in sys.stdin:
        begin = time.process_time()
        loss = step()
        trained = time.process_time() - begin
        predict()  # folds the new weights
        begin = time.process_time()
        for _ in range(2):
            predict()
        predicted = (time.process_time() - begin) / 2
        print(json.dumps({"training step": trained, "inference": predicted, "loss": loss}), flush=True)


def build(name: str, size: int) -> tuple[Any, Any]:
    """A step that returns its loss, and a prediction, of the checkout on the path."""
    import torch

    from rtdetr_tool.spec import spec_from_dict
    from rtdetr_tool.training.module import DetectorModule
    from rtdetr_tool.training.optim import build_optimizer

    classes = moved("classes")
    torch.manual_seed(0)
    augmentation = {"multi_scales": [], "train_spatial_size": [size, size], "eval_spatial_size": [size, size]}
    spec = spec_from_dict(
        {
            "results_dir": "unused",
            "model": MODELS[name],
            "dataset": {"num_classes": CLASSES[name], "augmentation": augmentation},
            "train": {"activation_checkpoint": False},
        }
    )
    class_map = classes.ClassMap([classes.ClassEntry(index, index, f"c{index}") for index in range(80)], 80)
    module = without_trainer(DetectorModule)(spec, class_map).train().to(memory_format=torch.channels_last)
    module.guard = moved("guard").StepGuard(module.detector, module.criterion)
    optimizer = build_optimizer("AdamW", module.parameter_groups(), momentum=0.9, fused=True)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    batch = draw_batch(size)
    runtime = moved("runtime").TorchRuntime(module.detector, class_map)
    image = torch.rand(1, 3, size, size)

    def step() -> float:
        optimizer.zero_grad()
        module.train()
        loss = module.training_step(batch, 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
        return float(loss.detach())

    return step, lambda: runtime.predict(image)


def draw_batch(size: int, images: int = 2, objects: int = 10) -> Any:
    """Random images [N, 3, size, size] uint8 with random boxes inside."""
    import torch

    from rtdetr_tool.ops.structures import Batch, Target

    generator = torch.Generator().manual_seed(0)
    targets = []
    for index in range(images):
        sides = torch.rand(objects, 2, generator=generator) * 0.3 + 0.05
        centers = sides / 2 + torch.rand(objects, 2, generator=generator) * (1 - sides)
        labels = torch.randint(0, 80, (objects,), generator=generator)
        targets.append(Target(torch.cat([centers, sides], 1), labels, index + 1, (size, size), (float(size),) * 2))
    return Batch(torch.randint(0, 255, (images, 3, size, size), dtype=torch.uint8, generator=generator), targets)


def without_trainer(module: type) -> type:
    """The module with what a step asks of Lightning's trainer as constants."""
    return type(
        module.__name__,
        (module,),
        {
            "log": lambda *_, **__: None,
            "log_dict": lambda *_, **__: None,
            "_main_rate": lambda _: 1e-4,
            "global_step": property(lambda _: 0),
            "current_epoch": property(lambda _: 0),
            "global_rank": property(lambda _: 0),
        },
    )


def moved(key: str) -> Any:
    """The module of this checkout. An installed copy of the project could supply the others, so files are searched."""
    import rtdetr_tool

    root = Path(str(rtdetr_tool.__file__)).parent.parent
    for name in MOVED[key]:
        if root.joinpath(*name.split(".")).with_suffix(".py").is_file():
            return importlib.import_module(name)
    raise SystemExit(f"none of {', '.join(MOVED[key])} exists in {root}")


if __name__ == "__main__":
    main()
