"""Compare D-FINE with transformers' `DFineForObjectDetection`: training step and inference, alternating in one process.

    python scripts/bench_dfine.py --threads 1 --cpu-time [--variant s] [--rounds 7] [--size 320] [--batch 2] [--profile]

Both have the same random weights, images and targets, all norms trained. A training step is forward with denoising
queries, loss, backward, clipping and fused AdamW, ours with channels_last and oneDNN as in our trainer. Inference is
one image through the network in PyTorch, ours as it was trained and as in `evaluate` and `inference`. transformers
computes fewer losses: it does not supervise the first box, and does not combine the matchings of the stages.

`--profile` prints the operators of a step of each that take longest. Absolute times depend on the machine and its load;
compare the ratios, medians of the ratios of all rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

import torch
from bench_gpu_peers import dfine_peer, dfine_spec, labels_of
from bench_peers import CLASSES, draw_targets, step_of
from bench_timing import Clock, Run, alternate, machine, ratio
from torch import Tensor, nn

from rtdetr_tool.catalog import DFINE_VARIANTS
from rtdetr_tool.families.dfine.build import build_criterion, build_detector
from rtdetr_tool.families.dfine.transformers_names import from_transformers
from rtdetr_tool.formats.torch.runtime import TorchRuntime
from rtdetr_tool.ops.onednn import use_onednn
from rtdetr_tool.ops.structures import Target
from rtdetr_tool.spec import ModelSpec

QUERIES = 300
STRIDES = (4, 8, 16, 32)  # of the stages of the backbone
OURS, PEER = "ours", "transformers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variant", choices=tuple(DFINE_VARIANTS), default="s")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default 7)")
    parser.add_argument("--size", type=int, default=320, help="side of the images (default 320)")
    parser.add_argument("--batch", type=int, default=2, help="images of a training step (default 2)")
    parser.add_argument("--threads", type=int, help="threads (default: torch's default)")
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time instead of wall time")
    parser.add_argument("--profile", action="store_true", help="print the operators that take longest instead")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    levels = DFINE_VARIANTS[options.variant].indices
    queries = min(QUERIES, sum((options.size // STRIDES[level]) ** 2 for level in levels))
    print(f"D-FINE {options.variant}, {options.size} px, {queries} queries, {machine('transformers')}")
    torch.manual_seed(0)
    spec = dfine_spec(options.variant, queries)
    reference = dfine_peer(spec, torch.device("cpu")).network
    ours = build_detector(spec, CLASSES)
    ours.load_state_dict(from_transformers(reference.state_dict()))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(options.batch, 3, options.size, options.size, generator=generator)
    inference = inference_sides(ours, reference, images[:1])
    step = training_sides(spec, ours, reference, images, draw_targets(options.batch))
    for title, sides in (("inference, batch 1", inference), (f"training step, batch {options.batch}", step)):
        if title.startswith("training"):
            ours.train()
            reference.train()
        if options.profile:
            profile(title, sides)
        else:
            report(title, sides, options.rounds, clock)


def training_sides(
    spec: ModelSpec, ours: nn.Module, reference: nn.Module, images: Tensor, targets: list[Target]
) -> dict[str, Run]:
    criterion, labels = build_criterion(spec), labels_of(targets, "class_labels")
    use_onednn(ours.to(memory_format=torch.channels_last))
    ordered = images.contiguous(memory_format=torch.channels_last)
    return {
        OURS: step_of(ours, lambda: criterion(ours(ordered, targets), targets)["loss"]),
        PEER: step_of(reference, lambda: reference(images, labels=labels).loss),
    }


def inference_sides(ours: nn.Module, reference: nn.Module, image: Tensor) -> dict[str, Run]:
    """One image through each network; returns the sum of the scores."""
    runtime, ordered = TorchRuntime(ours, None), image.contiguous(memory_format=torch.channels_last)

    def total(network: nn.Module, images: Tensor) -> float:
        with torch.inference_mode():
            return network.eval()(images).logits.sigmoid().sum().item()

    return {
        f"{OURS}, as trained": lambda: total(ours, ordered),
        f"{OURS}, runtime": lambda: runtime.predict(image).logits.sigmoid().sum().item(),
        PEER: lambda: total(reference, image),
    }


def report(title: str, sides: Mapping[str, Run], rounds: int, clock: Clock) -> None:
    """Run all sides alternately; print medians with quartiles, and ratios to transformers in the same round."""
    results = {name: run() for name, run in sides.items()}
    times = alternate(sides, rounds, clock)
    print(f"\n{title}")
    for name, measured in times.items():
        middle, low, high = ratio(measured, times[PEER])
        print(f"  {name:20s}{measured}   ratio {middle:.2f} ({low:.2f} to {high:.2f})   result {results[name]:.4f}")


def profile(title: str, sides: Mapping[str, Run]) -> None:
    for name, run in sides.items():
        run()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
            run()
        print(f"\n{title}, {name}")
        print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=50))


if __name__ == "__main__":
    main()
