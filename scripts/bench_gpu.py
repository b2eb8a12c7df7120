"""Measure training and inference on a GPU: ours and, if installed, that of transformers, alternately in one run.

    python scripts/bench_gpu.py [--models r18 r50 nano] [--precisions fp32 bf16] [--batch 16] [--json FILE]

Per model and precision: seconds of a training step (forward, loss, backward, clipping, fused AdamW), images/s, model
FLOPs utilization (three times the forward pass, over --peak TFLOP/s), peak memory, and the latency of the deployed
network at batch 1 and 16, eager and compiled. Medians over alternating turns. Writes JSON and prints a table for
docs/performance.md. `--device cpu --size 64 --batch 2 --steps 1` checks the script on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rtdetr_tool.formats.torch.runtime import DTYPES, TorchRuntime
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.structures import Target
from rtdetr_tool.spec import ModelSpec, spec_from_dict

CLASSES, OBJECTS = 80, 10
MODELS: dict[str, tuple[dict[str, Any], int]] = {  # the `model` section, and the side of its images
    "r18": ({"backbone": "resnet_18d", "expansion": 0.5, "dec_layers": 3}, 640),
    "r50": ({"backbone": "resnet_50d"}, 640),
    "nano": ({"arch": "rfdetr", "rfdetr": {"variant": "nano"}}, 384),
}
Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=DTYPES)
    parser.add_argument("--batch", type=int, default=16, help="images of a training step (default 16)")
    parser.add_argument("--size", type=int, help="side of the images (default: the model's)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps per turn (default 10)")
    parser.add_argument("--turns", type=int, default=3, help="alternations (default 3)")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the GPU in bf16, for the utilization")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--compile", action="store_true", help="also measure compiled inference")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device")
    torch.backends.cudnn.benchmark = True
    rows = []
    for name in options.models:
        for precision in options.precisions:
            for row in measure(name, precision, options):
                rows.append(row)
                print(json.dumps(row), flush=True)
    if options.json:
        machine = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
        options.json.write_text(json.dumps({"machine": machine, "torch": torch.__version__, "rows": rows}, indent=1))
    print(table(rows))


def measure(name: str, precision: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for ours and one for each peer, measured alternately."""
    section, side = MODELS[name]
    side = options.size or side
    device, dtype = torch.device(options.device), DTYPES[precision]
    torch.manual_seed(0)
    spec = spec_from_dict({"results_dir": "unused", "model": section}).model
    images = torch.rand(options.batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    steps, flops, rows = {"ours": our_step(spec, images, dtype)}, our_flops(spec, images[:1]), []
    if name != "nano" and (peer := transformers_step(section, images, dtype)) is not None:
        steps["transformers"] = peer
    times: dict[str, list[float]] = {who: [] for who in steps}
    memory = {}
    for who, step in steps.items():
        reset_memory(device)
        step()
        step()
        memory[who] = peak_memory(device)
    for _ in range(options.turns):
        for who, step in steps.items():
            times[who].append(seconds(step, options.steps, device))
    steps.clear()
    gc.collect()
    for who, measured in times.items():
        step_time = statistics.median(measured)
        row = {
            "model": name, "who": who, "precision": precision, "batch": options.batch, "side": side,
            "step_ms": 1000 * step_time, "images_per_second": options.batch / step_time, "memory_gib": memory[who],
        }  # fmt: skip
        if who == "ours":
            row["tflops"] = 3 * flops * options.batch / step_time / 1e12
            row["mfu"] = row["tflops"] / options.peak if options.peak else None
            row |= latencies(spec, images, dtype, options)
        rows.append(row)
    return rows


def draw_targets(batch: int, side: int, device: torch.device) -> list[Target]:
    generator, targets = torch.Generator().manual_seed(0), []
    for index in range(batch):
        sides = torch.rand(OBJECTS, 2, generator=generator) * 0.3 + 0.05
        boxes = torch.cat([sides / 2 + torch.rand(OBJECTS, 2, generator=generator) * (1 - sides), sides], 1)
        labels = torch.randint(0, CLASSES, (OBJECTS,), generator=generator)
        targets.append(Target(boxes, labels, index, (side, side), (float(side), float(side))).to(device))
    return targets


def train_step(network: nn.Module, loss: Callable[[], Tensor], device: torch.device, dtype: torch.dtype) -> Step:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=dtype != torch.float16 or None)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(device, dtype):
            value = loss()
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, 0.1)
        scaler.step(optimizer)
        scaler.update()

    return step


def our_step(spec: ModelSpec, images: Tensor, dtype: torch.dtype) -> Step:
    detector = build_detector(spec, CLASSES).to(images.device, memory_format=torch.channels_last).train()
    criterion, targets = build_criterion(spec), draw_targets(len(images), images.shape[-1], images.device)
    return train_step(detector, lambda: criterion(detector(images, targets), targets)["loss"], images.device, dtype)


def our_flops(spec: ModelSpec, image: Tensor) -> float:
    """FLOPs of the forward pass of one image in eval mode."""
    detector = build_detector(spec, CLASSES).to(image.device).eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        detector(image)
    return float(counter.get_total_flops())


def transformers_step(section: dict[str, Any], images: Tensor, dtype: torch.dtype) -> Step | None:
    """The same step with transformers' RT-DETRv2; None if transformers is not installed."""
    try:
        import transformers
    except ImportError:
        return None
    basic = section["backbone"] == "resnet_18d"
    sizes = [64, 128, 256, 512] if basic else [256, 512, 1024, 2048]
    backbone = transformers.RTDetrResNetConfig(
        depths=[2, 2, 2, 2] if basic else [3, 4, 6, 3],
        layer_type="basic" if basic else "bottleneck",
        hidden_sizes=sizes,
        out_features=["stage2", "stage3", "stage4"],
    )
    changes = {"decoder_layers": 3, "hidden_expansion": 0.5} if basic else {}
    config = transformers.RTDetrV2Config(
        backbone_config=backbone, num_labels=CLASSES, encoder_in_channels=sizes[1:], freeze_backbone_batch_norms=False,
        **changes,
    )  # fmt: skip
    network = transformers.RTDetrV2ForObjectDetection(config).to(images.device).train()
    targets = draw_targets(len(images), images.shape[-1], images.device)
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
    return train_step(network, lambda: network(images, labels=labels).loss, images.device, dtype)


def latencies(
    spec: ModelSpec, images: Tensor, dtype: torch.dtype, options: argparse.Namespace
) -> dict[str, float | None]:
    """Milliseconds of the deployed network at batch 1 and the training batch."""
    detector, result = build_detector(spec, CLASSES), {}
    for compiled in (False, True) if options.compile else (False,):
        for batch in dict.fromkeys((1, len(images))):
            runtime = TorchRuntime(detector, None, images.device, dtype, compiled)
            part = images[:batch]
            for _ in range(3):
                runtime.predict(part)
            measured = seconds(lambda run=runtime, x=part: run.predict(x), options.steps, images.device)
            result[f"latency_b{batch}{'_compiled' if compiled else ''}_ms"] = 1000 * measured
    return result


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def seconds(step: Step, count: int, device: torch.device) -> float:
    """Seconds per step, the mean of `count` steps that are queued without synchronization."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / count


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def reset_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None


def table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        cells = [row.get(column) for column in columns]
        lines.append("| " + " | ".join(f"{c:.2f}" if isinstance(c, float) else str(c or "") for c in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
