"""Measure training and inference on a GPU: ours and the peers that are available, alternately in one run.

    python scripts/bench_gpu.py [--models r18 r50 nano] [--precisions fp32 bf16] [--official RT-DETR] [--json FILE]

Peers: the official RT-DETRv2 (`--official`, the path of a checkout), transformers and rfdetr where installed. Columns:
milliseconds of a training step (forward, loss, backward, clipping, fused AdamW), images/s, achieved TFLOP/s and model
FLOPs utilization (three times our forward pass; the peers have the same architecture), peak memory, and milliseconds
of the deployed network by batch size. Medians over alternating turns. Writes JSON and prints a table for
docs/performance.md. `--device cpu --size 64 --batch 2 --steps 1 --turns 1` checks the script without a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from bench_gpu_peers import CLASSES, Peer, build_peers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rtdetr_tool.formats.torch.runtime import DTYPES, TorchRuntime
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.structures import Target
from rtdetr_tool.spec import ModelSpec, spec_from_dict

OBJECTS = 10
MODELS: dict[str, tuple[dict[str, Any], int]] = {  # the `model` section, and the side of its images
    "r18": ({"backbone": "resnet_18d", "expansion": 0.5, "dec_layers": 3}, 640),
    "r50": ({"backbone": "resnet_50d"}, 640),
    "nano": ({"arch": "rfdetr", "rfdetr": {"variant": "nano"}}, 384),
}
# TFLOP/s of dense bf16 products, from NVIDIA's data sheets; the first name that is part of the device's counts.
PEAKS = {"H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A10": 125.0, "L4": 121.0}
Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"], choices=DTYPES)
    parser.add_argument("--official", type=Path, help="a checkout of the official RT-DETR (lyuwenyu/RT-DETR)")
    parser.add_argument("--batch", type=int, default=16, help="images of a training step (default 16)")
    parser.add_argument("--latency", type=int, nargs="+", default=[1, 16], help="batch sizes of inference (1 and 16)")
    parser.add_argument("--size", type=int, help="side of the images (default: the model's)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps per turn (default 10)")
    parser.add_argument("--turns", type=int, default=3, help="alternations (default 3)")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the GPU in bf16 (default: by its name)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--compile", action="store_true", help="also measure our compiled inference")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no model is started")
    parser.add_argument("--json", type=Path, help="file to write the results to, after each model")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device")
    torch.backends.cudnn.benchmark = True
    machine = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    options.peak = options.peak or next((peak for name, peak in PEAKS.items() if name in machine), None)
    start, rows, skipped = time.monotonic(), [], []
    for precision in options.precisions:
        for name in options.models:
            if time.monotonic() - start > options.budget:
                skipped.append(f"{name} {precision}")
                continue
            rows += measure(name, precision, options)
            print(f"{time.monotonic() - start:.0f} s: measured {name} in {precision}", flush=True)
            if options.json:
                document = {"machine": machine, "torch": torch.__version__, "peak_tflops": options.peak, "rows": rows}
                options.json.write_text(json.dumps(document, indent=1))
    print(f"{machine}, torch {torch.__version__}\n\n{table(rows)}")
    if skipped:
        print(f"Skipping {', '.join(skipped)}: the budget of {options.budget:g} s is used up")


def measure(name: str, precision: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for ours and one for each peer, measured alternately."""
    section, side = MODELS[name]
    side = options.size or side
    device, dtype = torch.device(options.device), DTYPES[precision]
    queries = queries_of(name, side)
    peers = build_peers(name, device, side, queries, options.official)
    spec = spec_from_dict({"results_dir": "unused", "model": with_queries(section, queries)}).model
    builders: dict[str, Callable[[], Peer]] = {"ours": lambda: our_detector(spec, device, dtype), **peers}
    largest = max(options.batch, *options.latency)
    images = torch.rand(largest, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    targets = draw_targets(options.batch, side, device)
    rows, detectors = {}, {}
    for who, build in builders.items():
        row = {"model": name, "who": who, "precision": precision, "batch": options.batch, "side": side}
        torch.manual_seed(0)
        try:
            detectors[who] = build()
            rows[who] = row
        except Exception as error:  # another version of a peer must not end the run
            rows[who] = {**row, "error": f"{type(error).__name__}: {error}"[:300]}
    steps = {who: train_step(peer, images[: options.batch], targets, dtype) for who, peer in detectors.items()}
    for who in steps:
        rows[who]["memory_gib"] = memory_of(steps[who], device)
    for who, seconds in alternate(steps, options).items():
        rows[who] |= {"step_ms": 1000 * seconds, "images_per_second": options.batch / seconds}
        rows[who]["tflops"] = 3 * forward_flops(spec, images[:1]) * options.batch / seconds / 1e12
        rows[who]["mfu"] = rows[who]["tflops"] / options.peak if options.peak else None
    del steps
    for batch in options.latency:
        runs = {who: inference(peer, images[:batch], dtype) for who, peer in detectors.items()}
        for who, seconds in alternate(runs, options).items():
            rows[who][f"latency_b{batch}_ms"] = 1000 * seconds
        if options.compile:
            runtime = TorchRuntime(build_detector(spec, CLASSES), None, device, dtype, compiled=True)
            compiled = alternate({"ours": lambda: runtime.predict(images[:batch])}, options)  # noqa: B023
            rows["ours"][f"compiled_b{batch}_ms"] = 1000 * compiled["ours"]
    detectors.clear()
    gc.collect()
    return list(rows.values())


def queries_of(name: str, side: int) -> int:
    """300, or fewer if the feature maps of a small image have fewer points."""
    strides = (16,) if name == "nano" else (8, 16, 32)
    return min(300, sum((side // stride) ** 2 for stride in strides))


def with_queries(section: dict[str, Any], queries: int) -> dict[str, Any]:
    if "rfdetr" in section:
        return {**section, "num_select": queries, "rfdetr": {**section["rfdetr"], "num_queries": queries}}
    return {**section, "num_select": queries, "num_queries": queries}


def our_detector(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Peer:
    detector = build_detector(spec, CLASSES)
    runtime = TorchRuntime(detector, None, device, dtype)
    network = detector.to(device, memory_format=torch.channels_last).train()
    criterion = build_criterion(spec)
    return Peer(network, lambda images, targets: criterion(network(images, targets), targets)["loss"], runtime.predict)


def draw_targets(batch: int, side: int, device: torch.device) -> list[Target]:
    generator, targets = torch.Generator().manual_seed(0), []
    for index in range(batch):
        sides = torch.rand(OBJECTS, 2, generator=generator) * 0.3 + 0.05
        boxes = torch.cat([sides / 2 + torch.rand(OBJECTS, 2, generator=generator) * (1 - sides), sides], 1)
        labels = torch.randint(0, CLASSES, (OBJECTS,), generator=generator)
        targets.append(Target(boxes, labels, index, (side, side), (float(side), float(side))).to(device))
    return targets


def train_step(peer: Peer, images: Tensor, targets: list[Target], dtype: torch.dtype) -> Step:
    device = images.device
    parameters = [parameter for parameter in peer.network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=dtype != torch.float16 or None)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(device, dtype):
            value = peer.loss(images, targets)
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, 0.1)
        scaler.step(optimizer)
        scaler.update()

    return step


def inference(peer: Peer, images: Tensor, dtype: torch.dtype) -> Step:
    @torch.inference_mode()
    def run() -> object:
        with autocast(images.device, dtype):
            return peer.predict(images)

    return run


def forward_flops(spec: ModelSpec, image: Tensor) -> float:
    """FLOPs of our forward pass of one image in eval mode, two per multiply-add."""
    detector = build_detector(spec, CLASSES).to(image.device).eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        detector(image)
    return float(counter.get_total_flops())


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def alternate(runs: Mapping[str, Step], options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each, after two warm-ups; in every turn each runs `--steps` times."""
    device = torch.device(options.device)
    for run in (*runs.values(), *runs.values()):
        run()
    times: dict[str, list[float]] = {who: [] for who in runs}
    for turn in range(options.turns):
        for who, run in runs.items() if turn % 2 == 0 else reversed(runs.items()):
            times[who].append(seconds_of(run, options.steps, device))
    return {who: statistics.median(of_run) for who, of_run in times.items()}


def seconds_of(step: Step, count: int, device: torch.device) -> float:
    """Seconds per step, the mean of `count` steps that are queued without synchronization."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / count


def memory_of(step: Step, device: torch.device) -> float | None:
    """GiB at the peak of a second step, without what was allocated by other detectors."""
    step()
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    others = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return (torch.cuda.max_memory_allocated() - others) / 2**30


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        cells = [row.get(column) for column in columns]
        lines.append("| " + " | ".join(f"{c:.2f}" if isinstance(c, float) else str(c or "") for c in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
