"""Time a training step and eager inference of our RT-DETR R18 and transformers', alternately in one process.

    python scripts/bench_peers.py [--steps 5] [--size 640] [--batch 4] [--autocast bf16] [--threads 1 --cpu-time]

Both have the same weights, input, targets, number of queries, denoising queries and classes, trained backbone norms,
no activation checkpointing, and fused AdamW with gradient clipping. Ours runs as in our trainer, in channels_last. A
training step is forward, loss, backward, clipping and optimizer step; inference is one image through the eager network,
ours as it was trained, and as our `evaluate` and `inference` run it (`TorchRuntime`).

Absolute times depend on the machine and its load; compare the ratio of the medians (ours / transformers).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from rtdetr_tool.families.rtdetr.transformers_names import from_transformers
from rtdetr_tool.formats.torch.runtime import TorchRuntime
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.structures import Target
from rtdetr_tool.spec.model import ModelSpec

CLASSES = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=5, help="timed alternations (default 5)")
    parser.add_argument("--size", type=int, default=640, help="side of the images (default 640)")
    parser.add_argument("--batch", type=int, default=4, help="images of a training step (default 4)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's default)")
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure CPU time instead of wall time (for a busy machine)"
    )
    parser.add_argument("--autocast", choices=("bf16",), help="mixed precision for both")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter

    def autocast() -> AbstractContextManager:
        return torch.autocast("cpu", torch.bfloat16) if options.autocast else nullcontext()

    torch.manual_seed(0)
    reference, ours = build_reference(), build_detector(ModelSpec(backbone="resnet_18d"), CLASSES)
    criterion = build_criterion(ModelSpec())
    ours.load_state_dict(from_transformers(reference.state_dict()))
    ours.to(memory_format=torch.channels_last)

    images = torch.rand(options.batch, 3, options.size, options.size)
    targets = draw_targets(options.batch)
    precision = options.autocast or "fp32"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.size} px, {precision}")
    image = images[:1]
    for name, network in (("unfused", ours), ("runtime", TorchRuntime(ours, None).detector)):
        runs = inference_steps(network, reference, image, autocast)
        report(f"inference, batch 1, {name}", clock, options.steps, *runs)
    report(
        f"training step, batch {options.batch}",
        clock,
        options.steps,
        *training_steps(ours, criterion, reference, images, targets, autocast),
    )


def build_reference() -> nn.Module:
    """transformers' R18 with random weights; its initial norms are near zero, with which all queries would tie."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

    backbone = RTDetrResNetConfig(
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[128, 256, 512],
        num_labels=CLASSES,
        freeze_backbone_batch_norms=False,
    )
    model = RTDetrForObjectDetection(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return model


def draw_targets(count: int, objects: int = 7) -> list[Target]:
    """Images with `objects` random boxes each, about as many as in COCO."""
    made = []
    for index in range(count):
        boxes = torch.cat([torch.rand(objects, 2) * 0.6 + 0.2, torch.rand(objects, 2) * 0.3 + 0.05], dim=1)
        made.append(Target(boxes, torch.randint(CLASSES, (objects,)), index, (640, 640), (640.0, 640.0)))
    return made


def training_steps(
    ours: nn.Module,
    criterion: nn.Module,
    reference: nn.Module,
    images: Tensor,
    targets: list[Target],
    autocast: Callable[[], AbstractContextManager],
) -> tuple[Callable[[], float], Callable[[], float]]:
    """A training step of each implementation; returns the loss."""
    ours.train()
    reference.train()
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
    ordered = images.contiguous(memory_format=torch.channels_last)

    def our_loss() -> Tensor:
        return criterion(ours(ordered, targets), targets)["loss"]

    def reference_loss() -> Tensor:
        return reference(images, labels=labels).loss

    return step_of(ours, our_loss, autocast), step_of(reference, reference_loss, autocast)


def step_of(
    model: nn.Module,
    compute_loss: Callable[[], Tensor],
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> Callable[[], float]:
    """A complete training step; returns the loss."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-4, fused=True)

    def step() -> float:
        torch.manual_seed(1)
        with autocast():
            loss = compute_loss()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
        return loss.item()

    return step


def inference_steps(
    ours: nn.Module, reference: nn.Module, image: Tensor, autocast: Callable[[], AbstractContextManager]
) -> tuple[Callable[[], float], Callable[[], float]]:
    """A forward pass of each implementation; returns the sum of the scores."""
    ours.eval()
    reference.eval()
    ordered = image.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def our_pass() -> float:
        with autocast():
            return ours(ordered).logits.float().sigmoid().sum().item()

    @torch.inference_mode()
    def reference_pass() -> float:
        with autocast():
            return reference(image).logits.float().sigmoid().sum().item()

    return our_pass, reference_pass


def report(
    name: str,
    clock: Callable[[], float],
    steps: int,
    ours: Callable[[], float],
    reference: Callable[[], float],
    peer: str = "transformers",
) -> None:
    """Run both alternately and print medians, their ratio, and the first results of both."""
    values = ours(), reference()  # also a warm-up
    times: dict[str, list[float]] = {"ours": [], "reference": []}
    for step in range(steps):
        pair = [("ours", ours), ("reference", reference)]
        for who, run in pair if step % 2 == 0 else reversed(pair):
            start = clock()
            run()
            times[who].append(clock() - start)
    mine, other = statistics.median(times["ours"]), statistics.median(times["reference"])
    print(
        f"{name:30s} ours {mine * 1e3:8.1f} ms   {peer} {other * 1e3:8.1f} ms   ratio {mine / other:.2f}"
        f"   (results {values[0]:.4f} and {values[1]:.4f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
