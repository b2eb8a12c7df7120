"""Time and memory of a training step and of inference as one quantity grows, with fitted exponents and a plot.

    python scripts/bench_scaling.py [--model r18] [--size 320] [--batch 2] [--rounds 5] [--plot docs/images/scaling.svg]

Quantities: queries, classes, boxes per image, pixels, images of a batch and ranks (DDP on this machine over gloo, with
the same batch per rank). All others keep their default meanwhile. Times are processor time of one thread: medians of
rounds that take all values in turn, so that load of the machine affects them alike. Memory is what one step needs in
addition to the weights.

The exponent p of time ~ value^p is fitted to all values, and to the last two ("end"), where fixed costs matter least.
It is compared with the largest exponent of an operation of the architecture: queries attend to each other, so 2.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from bench_gpu import MODELS, with_queries
from bench_peers import draw_targets, step_of
from bench_timing import Run, alternate, machine, peak_memory
from torch import nn

from rtdetr_tool.formats.torch.runtime import TorchRuntime
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.spec import spec_from_dict

STEP, INFERENCE = "training step", "inference"
TOLERANCE = 0.15  # of an exponent: noise of shared machines


@dataclass(frozen=True)
class Axis:
    """A quantity, its values, and the exponent of the architecture's fastest growing operation."""

    name: str
    values: tuple[int, ...]
    limit: float
    reason: str
    inference: bool = True


AXES = (
    Axis("queries", (100, 200, 400, 800), 2, "attention among queries"),
    Axis("classes", (20, 80, 320, 1280), 1, "class scores of all tokens"),
    Axis("boxes per image", (4, 16, 64, 256), 2, "attention among denoising queries, matching", inference=False),
    Axis("side of the image", (192, 320, 448, 640), 4, "attention in the coarsest level, of side^2 tokens"),
    Axis("images of a batch", (1, 2, 4, 8), 1, "everything"),
    Axis("ranks", (1, 2), 0, "gradients: the same bytes per rank", inference=False),
)


@dataclass
class Case:
    """The sizes of one measurement."""

    queries: int = 300
    classes: int = 80
    boxes: int = 8
    size: int = 320
    batch: int = 2

    def changed(self, axis: Axis, value: int) -> Case:
        names = dict(zip((axis.name for axis in AXES), ("queries", "classes", "boxes", "size", "batch"), strict=False))
        return Case(**{**vars(self), names[axis.name]: value})


@dataclass
class Curve:
    """Medians by value."""

    axis: Axis
    work: str
    values: list[int]
    seconds: list[float]
    memory: list[float | None] = field(default_factory=list)

    @property
    def exponent(self) -> float:
        return fitted_exponent(self.values, self.seconds)

    @property
    def end(self) -> float:
        """The exponent between the last two values."""
        return fitted_exponent(self.values[-2:], self.seconds[-2:])

    @property
    def memory_exponent(self) -> float | None:
        known = [(value, mib) for value, mib in zip(self.values, self.memory, strict=False) if mib and mib > 0]
        return fitted_exponent(*zip(*known, strict=True)) if len(known) > 1 else None

    @property
    def within(self) -> bool:
        return self.end <= self.axis.limit + TOLERANCE


def fitted_exponent(values: Sequence[float], results: Sequence[float]) -> float:
    """p of results ~ values^p, by least squares of the logarithms."""
    x, y = [math.log(value) for value in values], [math.log(result) for result in results]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="r18", choices=MODELS)
    parser.add_argument("--axes", nargs="+", default=[axis.name for axis in AXES], choices=[axis.name for axis in AXES])
    parser.add_argument("--values", type=int, nargs="+", help="the values of the only axis, instead of its own")
    parser.add_argument("--size", type=int, default=320, help="side of the images (default 320)")
    parser.add_argument("--batch", type=int, default=2, help="images of a step (default 2)")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument("--plot", type=Path, help="SVG or PNG file to write")
    parser.add_argument("--json", type=Path, help="file to write the medians to")
    parser.add_argument("--rank", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = Case(size=options.size, batch=options.batch, queries=options.queries)
    if options.rank:
        print(json.dumps(run_rank(options, base)))
        return
    if options.values and len(options.axes) > 1:
        parser.error("--values requires a single axis in --axes")
    print(
        f"{machine()}; {options.model}, {options.size} px, batch {options.batch}, {options.rounds} rounds", flush=True
    )
    curves: list[Curve] = []
    for axis in (axis for axis in AXES if axis.name in options.axes):
        values = tuple(options.values or axis.values)
        measured = (
            measure_ranks(axis, values, options) if axis.name == "ranks" else measure(axis, values, base, options)
        )
        curves += measured
        print("\n".join(map(row_of, measured)), flush=True)
    print("\n" + table_of(curves))
    if options.json:
        options.json.write_text(json.dumps([vars(c) | {"axis": c.axis.name} for c in curves], indent=1) + "\n")
    if options.plot:
        plot(curves, options.plot)
        print(f"Wrote {options.plot}")
    if worse := [f"{curve.axis.name} ({curve.work})" for curve in curves if not curve.within]:
        sys.exit(f"Faster growth than the architecture's own: {', '.join(worse)}")


def measure(axis: Axis, values: Sequence[int], base: Case, options: argparse.Namespace) -> list[Curve]:
    """One curve for the training step, and one for inference."""
    curves = []
    for work in (STEP, INFERENCE) if axis.inference else (STEP,):
        runs = {str(value): build_run(work, options.model, base.changed(axis, value)) for value in values}
        for run in runs.values():
            run()  # optimizer states and caches exist from now on
        memory = [peak_memory(run) for run in runs.values()]
        times = alternate(runs, options.rounds, time.process_time, warm_up=0)
        curves.append(Curve(axis, work, list(values), [times[str(value)].median for value in values], memory))
    return curves


def build_run(work: str, model: str, case: Case, wrap: Callable[[nn.Module], nn.Module] | None = None) -> Run:
    """A training step, or a forward pass as in `evaluate`."""
    torch.manual_seed(0)
    section = with_queries(MODELS[model][0], case.queries)
    spec = spec_from_dict({"results_dir": "unused", "model": section}).model
    detector = build_detector(spec, case.classes).to(memory_format=torch.channels_last)
    images = torch.rand(case.batch, 3, case.size, case.size).contiguous(memory_format=torch.channels_last)
    if work == INFERENCE:
        runtime = TorchRuntime(detector, None)
        return lambda: runtime.predict(images)
    criterion, targets = build_criterion(spec), draw_targets(case.batch, case.boxes, case.classes)
    network = (wrap or (lambda module: module))(detector.train())
    return step_of(network, lambda: criterion(network(images, targets), targets)["loss"])


def measure_ranks(axis: Axis, values: Sequence[int], options: argparse.Namespace) -> list[Curve]:
    """The step of one rank among several processes; each value in its own processes."""
    seconds, memory = [], []
    for count in values:
        file = Path(f"/tmp/bench_scaling_{time.time_ns()}")  # where the ranks meet
        common = ["--model", options.model, "--size", str(options.size), "--batch", str(options.batch)]
        common += ["--queries", str(options.queries), "--rounds", str(options.rounds)]
        command = [sys.executable, __file__, *common, "--rank"]
        processes = [
            subprocess.Popen([*command, str(rank), str(count), str(file)], stdout=subprocess.PIPE, text=True)
            for rank in range(count)
        ]
        found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
        file.unlink(missing_ok=True)
        seconds.append(max(rank["seconds"] for rank in found))
        memory.append(max((rank["memory"] for rank in found), key=lambda mib: mib or 0))
    return [Curve(axis, STEP, list(values), seconds, memory)]


def run_rank(options: argparse.Namespace, case: Case) -> dict[str, float | None]:
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    rank, count, file = int(options.rank[0]), int(options.rank[1]), options.rank[2]
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=count)
    arguments = {"gradient_as_bucket_view": True, "static_graph": True}  # as in training
    run = build_run(STEP, options.model, case, lambda module: DistributedDataParallel(module, **arguments))
    run()
    memory = peak_memory(run)
    times = alternate({"step": run}, options.rounds, time.process_time, warm_up=0)
    distributed.destroy_process_group()
    return {"seconds": times["step"].median, "memory": memory}


def row_of(curve: Curve) -> str:
    """A row of the table in docs/performance.md."""
    values = ", ".join(map(str, curve.values))
    seconds = ", ".join(f"{value:.2f}" for value in curve.seconds)
    memory = ", ".join("-" if mib is None else f"{mib:.0f}" for mib in curve.memory)
    of_memory = "-" if curve.memory_exponent is None else f"{curve.memory_exponent:.2f}"
    verdict = "" if curve.within else " **(exceeded)**"
    return (
        f"| {curve.axis.name} | {values} | {curve.work} | {seconds} | {curve.exponent:.2f} | {curve.end:.2f} | "
        f"{curve.axis.limit:g}{verdict} | {memory} | {of_memory} |"
    )


def table_of(curves: Sequence[Curve]) -> str:
    header = "| quantity | values | work | seconds | exponent | at the end | limit | MiB | exponent of memory |"
    return "\n".join([header, "|---" * 9 + "|", *map(row_of, curves)])


def plot(curves: Sequence[Curve], path: Path) -> None:
    """Time by value, one chart per quantity with logarithmic axes; the slope of a line is its exponent."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(curve.axis.name for curve in curves))
    rows = (len(names) + 2) // 3
    figure = Figure(figsize=(10, 3.2 * rows), layout="constrained")
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, 3, number + 1)
        for curve in (curve for curve in curves if curve.axis.name == name):
            axes.loglog(curve.values, curve.seconds, "o-", label=f"{curve.work}: {curve.exponent:.2f}, {curve.end:.2f}")
            fastest = [
                curve.seconds[-1] * (value / curve.values[-1]) ** curve.axis.limit for value in curve.values[-2:]
            ]
            axes.loglog(curve.values[-2:], fastest, ":", color="gray")
        axes.set_xticks(values_of(curves, name), labels=[str(value) for value in values_of(curves, name)])
        axes.minorticks_off()
        axes.set_xlabel(name)
        axes.set_ylabel("CPU seconds")
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def values_of(curves: Sequence[Curve], name: str) -> list[int]:
    return next(curve.values for curve in curves if curve.axis.name == name)


if __name__ == "__main__":
    main()
