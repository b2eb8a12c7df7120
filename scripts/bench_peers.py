"""Compare RT-DETR R18 with transformers and the official code: inference in every runtime, training step, peak memory.

    python scripts/bench_peers.py --threads 1 --cpu-time [--only inference step memory] [--official RT-DETR]
        [--precisions fp32 bf16] [--rounds 7] [--size 640] [--batch 4]

All sides run alternately in one process. The network is the official R18 (3 decoder layers, expansion 0.5); ours and
transformers' have the same perturbed random weights, because onnxruntime shares the work of layers that are copies of
each other. A training step is forward, loss, backward, clipping and fused AdamW, with trained norms and without
activation checkpointing; ours in channels_last and with oneDNN's products as in our trainer, also with
`train.recompute_norms`, the official one in channels_last with bf16. Inference is one image through the network, ours
as in `evaluate` and `inference`. `--official` is a checkout of lyuwenyu/RT-DETR. Memory is measured in a process of its
own per side.

Absolute times depend on the machine and its load; compare the ratios, medians of the ratios of all rounds.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from bench_gpu_peers import labels_of, official_peer
from bench_timing import Clock, Run, alternate, machine, peak_memory, ratio
from torch import Tensor, nn

from rtdetr_tool.families.rtdetr.transformers_names import from_transformers
from rtdetr_tool.formats.export_model import ExportModel
from rtdetr_tool.formats.onnx.export import export_graph
from rtdetr_tool.formats.openvino.biases import with_biases
from rtdetr_tool.formats.openvino.unsigned import with_unsigned_activations
from rtdetr_tool.formats.precision.calibration import activations_of
from rtdetr_tool.formats.precision.graph import Graph
from rtdetr_tool.formats.precision.quantize_nodes import place, quantizable
from rtdetr_tool.formats.precision.ranges import by_maximum, collect
from rtdetr_tool.formats.torch.runtime import DTYPES, TorchRuntime
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.batch_norm import count_together
from rtdetr_tool.ops.onednn import use_onednn
from rtdetr_tool.ops.recompute import recomputing
from rtdetr_tool.ops.structures import Target
from rtdetr_tool.spec.model import ModelSpec

CLASSES, QUERIES = 80, 300
SPEC = ModelSpec(backbone="resnet_18d", dec_layers=3, expansion=0.5)
OURS, TRANSFORMERS, OFFICIAL = "ours", "transformers", "official"
RECOMPUTED = f"{OURS}, recompute_norms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    works = ("inference", "step", "memory")
    parser.add_argument("--only", nargs="*", choices=works, default=works)
    parser.add_argument("--official", type=Path, help="a checkout of the official RT-DETR (lyuwenyu/RT-DETR)")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32"])
    parser.add_argument("--rounds", "--steps", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument("--size", type=int, default=640, help="side of the images (default 640)")
    parser.add_argument("--batch", type=int, default=4, help="images of a training step (default 4)")
    parser.add_argument("--threads", type=int, help="threads (default: torch's default)")
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure CPU time instead of wall time (for a busy machine)"
    )
    parser.add_argument(
        "--without-openvino", action="store_true", help="it fails if ONEDNN_MAX_CPU_ISA is lower than the processor's"
    )
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.memory_of:
        build, targets = training_sides(options)[options.memory_of], draw_targets(options.batch)
        print(json.dumps(memory_of(build, targets, options)))
        return
    print(machine("onnxruntime", "openvino", "transformers"))
    for precision in options.precisions:
        if "inference" in options.only and precision == options.precisions[0]:
            with tempfile.TemporaryDirectory() as folder:
                sides = inference_sides(options, Path(folder))
                report("inference, batch 1", sides, options.rounds, clock)
        if "step" in options.only:
            targets = draw_targets(options.batch)
            sides = {
                name: build(precision, draw_images(options), targets) for name, build in training_sides(options).items()
            }
            report(f"training step, batch {options.batch}, {precision}", sides, options.rounds, clock)
            del sides
        if "memory" in options.only:
            report_memory(precision, options)


def build_reference() -> nn.Module:
    """transformers' R18 with random weights, perturbed, and norms of 1: near zero, all queries would tie."""
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
        decoder_layers=SPEC.dec_layers,
        hidden_expansion=SPEC.expansion,
    )
    torch.manual_seed(0)
    model = RTDetrForObjectDetection(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return perturb(model)


@torch.no_grad()
def perturb(model: nn.Module) -> nn.Module:
    """Layers that start as copies of each other differ afterwards, as those of a trained model do."""
    for weight in model.parameters():
        weight.add_(0.05 * weight.abs().mean().clamp(min=1e-2) * torch.randn_like(weight))
    return model


def build_ours(reference: nn.Module) -> nn.Module:
    ours = build_detector(SPEC, CLASSES)
    ours.load_state_dict(from_transformers(reference.state_dict()))
    return ours


def draw_images(options: argparse.Namespace) -> Tensor:
    return torch.rand(options.batch, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))


def draw_targets(count: int, objects: int = 7, classes: int = CLASSES) -> list[Target]:
    """Images with `objects` random boxes each, by default about as many as in COCO."""
    made = []
    for index in range(count):
        boxes = torch.cat([torch.rand(objects, 2) * 0.6 + 0.2, torch.rand(objects, 2) * 0.3 + 0.05], dim=1)
        made.append(Target(boxes, torch.randint(classes, (objects,)), index, (640, 640), (640.0, 640.0)))
    return made


def autocast(precision: str) -> AbstractContextManager[Any]:
    return nullcontext() if precision == "fp32" else torch.autocast("cpu", DTYPES[precision])


def training_sides(options: argparse.Namespace) -> dict[str, Callable[[str, Tensor, list[Target]], Run]]:
    """Builders of the training step of each implementation, from precision, images and targets."""

    def our_step(precision: str, images: Tensor, targets: list[Target], recompute: bool = False) -> Run:
        ours, criterion = build_ours(build_reference()), build_criterion(SPEC)
        ours.to(memory_format=torch.channels_last).train()
        count_together(ours)
        use_onednn(ours)
        ordered = images.contiguous(memory_format=torch.channels_last)

        def compute_loss() -> Tensor:
            with recomputing(recompute):
                predictions = ours(ordered, targets)
            loss: Tensor = criterion(predictions, targets)["loss"]
            return loss

        return step_of(ours, compute_loss, partial(autocast, precision))

    def transformers_step(precision: str, images: Tensor, targets: list[Target]) -> Run:
        network, labels = build_reference().train(), labels_of(targets, "class_labels")
        return step_of(network, lambda: network(images, labels=labels).loss, partial(autocast, precision))

    def official_step(precision: str, images: Tensor, targets: list[Target]) -> Run:
        peer = official_peer("r18", options.official, torch.device("cpu"), options.size, QUERIES)
        if precision == "bf16":
            peer.network.to(memory_format=torch.channels_last)
            images = images.contiguous(memory_format=torch.channels_last)
        return step_of(peer.network, lambda: peer.loss(images, targets), partial(autocast, precision))

    sides = {OURS: our_step, RECOMPUTED: partial(our_step, recompute=True), TRANSFORMERS: transformers_step}
    return sides | ({OFFICIAL: official_step} if options.official else {})


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


def inference_sides(options: argparse.Namespace, folder: Path) -> dict[str, Run]:
    """One image through each network in each runtime; returns the sum of the scores."""
    image, reference = draw_images(options)[:1], build_reference().eval()
    ours, networks = build_ours(reference), {TRANSFORMERS: HuggingFaceOutputs(reference)}
    if options.official:
        peer = official_peer("r18", options.official, torch.device("cpu"), options.size, QUERIES)
        networks[OFFICIAL] = OfficialOutputs(perturb(peer.predict)).eval()
    sides: dict[str, Run] = {}
    for precision in ("fp32", "bf16"):
        runtime = TorchRuntime(ours, None, dtype=DTYPES[precision])
        sides[f"{OURS}, torch {precision}"] = lambda runtime=runtime: total(runtime.predict(image).logits)
        for name, network in networks.items():
            sides[f"{name}, torch {precision}"] = eager(network, image, precision)
    file = folder / "ours.onnx"
    onnx.save(export_graph(ExportModel(ours), (options.size, options.size), 1, 17), file)
    sides[f"{OURS}, onnxruntime"] = graph_run(file, image)
    if not options.without_openvino:
        for precision in ("f32", "bf16"):
            sides[f"{OURS}, OpenVINO {precision}"] = openvino_run(file, image, precision)
        quantized = folder / "ours_int8.onnx"
        onnx.save(with_biases(with_unsigned_activations(in_int8(onnx.load(file), image))), quantized)
        sides[f"{OURS}, OpenVINO int8"] = openvino_run(quantized, image, "f32")
    for name, network in networks.items():
        path = folder / f"{name}.onnx"
        torch.onnx.export(network, (image,), str(path), opset_version=17, dynamo=False)
        sides[f"{name}, onnxruntime"] = graph_run(path, image)
    return sides


class HuggingFaceOutputs(nn.Module):
    """transformers' network with logits and boxes as its outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.network(images)
        return found.logits, found.pred_boxes


class OfficialOutputs(HuggingFaceOutputs):
    """The official network with the same."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.network(images)
        return found["pred_logits"], found["pred_boxes"]


def total(logits: Tensor) -> float:
    return logits.float().sigmoid().sum().item()


def eager(network: nn.Module, image: Tensor, precision: str) -> Run:
    """A copy of the network in PyTorch; with bf16 in channels_last, which is faster."""
    network = copy.deepcopy(network)
    if precision == "bf16":
        network, image = network.to(memory_format=torch.channels_last), image.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run() -> float:
        with autocast(precision):
            return total(network(image)[0])

    return run


def graph_run(file: Path, image: Tensor, logits: str | None = None) -> Run:
    """The file in onnxruntime; `logits` is the name of the output of class logits, by default the first one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image.numpy()}
    names = [output.name for output in session.get_outputs()]
    index = names.index(logits) if logits else 0
    return lambda: total(torch.from_numpy(session.run(None, feed)[index]))


def in_int8(model: onnx.ModelProto, image: Tensor) -> onnx.ModelProto:
    """Every convolution and linear layer in INT8, with the ranges of one image; for times, not for scores."""
    graph = Graph(model)
    histograms, _ = collect(model, activations_of(graph), [image.numpy()], [], 1)
    return place(graph, set(quantizable(graph)), {name: by_maximum(found) for name, found in histograms.items()})


def openvino_run(file: Path, image: Tensor, precision: str, logits: str | int = 0) -> Run:
    """The file in OpenVINO."""
    from rtdetr_tool.formats.openvino.library import core
    from rtdetr_tool.formats.openvino.runtime import compiled

    request = compiled(core().read_model(file), precision).create_infer_request()
    return lambda: total(torch.from_numpy(request.infer({0: image.numpy()})[logits]))


def report(title: str, sides: Mapping[str, Run], rounds: int, clock: Clock) -> None:
    """Run all sides alternately and print medians and quartiles, then our time relative to each peer."""
    results = {name: run() for name, run in sides.items()}  # also a warm-up
    times = alternate(sides, rounds, clock)
    print(f"\n{title}")
    for name in sides:
        print(f"  {name:26s}{times[name]}   result {results[name]:.4f}")
    ours = [name for name in sides if name.startswith(OURS)]
    for peer in (name for name in sides if name not in ours):
        ratios = {name.removeprefix(f"{OURS}, "): ratio(times[name], times[peer]) for name in ours}
        found = [f"{name} {middle:.2f} ({low:.2f} to {high:.2f})" for name, (middle, low, high) in ratios.items()]
        print(f"  relative to {peer}: {', '.join(found)}", flush=True)


def memory_of(build: Callable[..., Run], targets: list[Target], options: argparse.Namespace) -> float | None:
    """MiB that a training step needs in addition to weights, gradients and the optimizer's state."""
    step = build(options.precisions[0], draw_images(options), targets)
    step()
    return peak_memory(step)


def report_memory(precision: str, options: argparse.Namespace) -> None:
    print(
        f"\npeak memory of a training step beyond weights, gradients and optimizer, batch {options.batch}, {precision}"
    )
    common = ["--precisions", precision, "--size", str(options.size), "--batch", str(options.batch)]
    common += ["--official", str(options.official)] if options.official else []
    found = {}
    for name in training_sides(options):
        command = [sys.executable, __file__, *common, "--memory-of", name]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[name] = json.loads(run.stdout.splitlines()[-1])
        if found[name] is None:
            print("  not measured: this system has no /proc/self/clear_refs")
            return
        ratios = [f"{side} {found[side] / found[name]:.2f} of it" for side in (OURS, RECOMPUTED) if side in found]
        print(f"  {name:28s}{found[name]:8.0f} MiB   {', '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
