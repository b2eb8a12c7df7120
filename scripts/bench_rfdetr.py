"""Time RF-DETR Nano against Roboflow's package, alternately in one process: inference, ONNX, a training step.

    python scripts/bench_rfdetr.py --threads 1 --cpu-time [--variant nano] [--rounds 5] [--batch 2] [--device cpu]

Both have the same perturbed random weights, images and targets. Inference is one image: ours as in `evaluate` and
`inference` (`TorchRuntime`), the package's as in `predict()`, plain and after `RFDETR.inference()` (traced, FP32 and
bf16); and the ONNX file of each in onnxruntime, ours in OpenVINO too. A training step is forward, loss, backward,
clipping and fused AdamW.

Absolute times depend on the machine and its load; compare the ratios, medians of the ratios of all rounds.
"""

from __future__ import annotations

import argparse
import copy
import logging
import tempfile
import time
from pathlib import Path

import onnx
import rfdetr
import torch
from bench_peers import draw_targets, graph_run, openvino_run, perturb, report, step_of, total
from bench_timing import Run, machine
from rfdetr.config import TrainConfig
from rfdetr.models import build_criterion_from_config
from torch import Tensor, nn

from rtdetr_tool.catalog import LAYOUTS
from rtdetr_tool.families.rfdetr.names import from_rfdetr
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.formats.export_model import ExportModel
from rtdetr_tool.formats.onnx.export import export_graph
from rtdetr_tool.formats.torch.runtime import DTYPES, TorchRuntime
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.onednn import use_onednn
from rtdetr_tool.ops.pixels import IMAGENET_MEAN, IMAGENET_STD
from rtdetr_tool.spec.model import ModelSpec

CLASSES = 90
CLASSES_OF_RFDETR = {"nano": rfdetr.RFDETRNano, "small": rfdetr.RFDETRSmall, "medium": rfdetr.RFDETRMedium}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variant", choices=CLASSES_OF_RFDETR, default="nano")
    parser.add_argument("--rounds", "--steps", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument("--batch", type=int, default=2, help="images of a training step (default 2)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="threads of torch and onnxruntime (default: torch's default)")
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure CPU time instead of wall time (for a busy machine)"
    )
    parser.add_argument(
        "--without-openvino", action="store_true", help="it fails if ONEDNN_MAX_CPU_ISA is lower than the processor's"
    )
    parser.add_argument("--only", nargs="*", choices=("inference", "step"), default=("inference", "step"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.getLogger("rf-detr").setLevel(logging.ERROR)
    clock = time.process_time if options.cpu_time else time.perf_counter
    reference, ours, spec = build_pair(options.variant, options.device)
    size = spec.rfdetr.resolution or reference.model_config.resolution
    images = torch.rand(options.batch, 3, size, size, device=options.device)
    print(f"{machine('onnxruntime', 'openvino', 'rfdetr')}, {options.device}, {size} px")
    if "inference" in options.only:
        sides = eager_inference(reference, ours, images[:1])
        if options.device == "cpu":
            sides |= graph_inference(reference, ours, images[:1], not options.without_openvino)
        report("inference, batch 1", sides, options.rounds, clock)
    if "step" in options.only:
        report(
            f"training step, batch {options.batch}",
            training_steps(reference, ours, spec, images),
            options.rounds,
            clock,
        )


def build_pair(variant: str, device: str) -> tuple[rfdetr.RFDETR, nn.Module, ModelSpec]:
    torch.manual_seed(0)
    reference = CLASSES_OF_RFDETR[variant](pretrain_weights=None, device=device, num_classes=CLASSES)
    spec = ModelSpec(arch="rfdetr", rfdetr=RfdetrSpec(variant=variant))
    perturb(reference.model.model)
    ours = build_detector(spec, CLASSES + 1)
    ours.load_state_dict(from_rfdetr(reference.model.model.state_dict()))
    reference.model.model.to(device)
    return reference, ours.to(device), spec


def normalized(images: Tensor) -> Tensor:
    """Images as the package passes them to its network; ours normalizes inside."""
    mean, std = images.new_tensor(IMAGENET_MEAN), images.new_tensor(IMAGENET_STD)
    return (images - mean[:, None, None]) / std[:, None, None]


def eager_inference(reference: rfdetr.RFDETR, ours: nn.Module, image: Tensor) -> dict[str, Run]:
    network, ready = copy.deepcopy(reference.model.model).eval(), normalized(image)
    sides: dict[str, Run] = {}
    for precision in ("fp32", "bf16"):
        runtime = TorchRuntime(ours, None, image.device, DTYPES[precision])
        sides[f"ours, torch {precision}"] = lambda runtime=runtime: total(runtime.predict(image).logits)
        reference.inference(compile=True, batch_size=1, dtype=DTYPES[precision])
        traced, typed = reference.model.inference_model, ready.to(DTYPES[precision])
        sides[f"rfdetr, inference() {precision}"] = no_grad(lambda traced=traced, typed=typed: total(traced(typed)[1]))
    sides["rfdetr, predict()"] = no_grad(lambda: total(network(ready)["pred_logits"]))
    return sides


def no_grad(run: Run) -> Run:
    def inference() -> object:
        with torch.inference_mode():
            return run()

    return inference


def graph_inference(reference: rfdetr.RFDETR, ours: nn.Module, image: Tensor, openvino: bool = True) -> dict[str, Run]:
    size, ready = (int(image.shape[2]), int(image.shape[3])), normalized(image)
    with tempfile.TemporaryDirectory() as folder:
        mine = Path(folder) / "ours.onnx"
        onnx.save(export_graph(ExportModel(ours, layout=LAYOUTS["rfdetr"]), size, 1, 17), mine)
        other = Path(reference.export(output_dir=folder, format="onnx"))
        sides = {"ours, onnxruntime": graph_run(mine, ready, "labels")}
        for precision in ("f32", "bf16") if openvino else ():
            sides[f"ours, OpenVINO {precision}"] = openvino_run(mine, ready, precision, "labels")
        sides["rfdetr, onnxruntime"] = graph_run(other, ready, "labels")
    return sides


def training_steps(reference: rfdetr.RFDETR, ours: nn.Module, spec: ModelSpec, images: Tensor) -> dict[str, Run]:
    """A training step of each implementation; returns the loss."""
    network = reference.model.model.train()
    settings = TrainConfig(dataset_dir=".", output_dir=".")
    judge = build_criterion_from_config(reference.model_config, settings)[0].train()
    criterion = build_criterion(spec).train()
    use_onednn(ours.train())  # as in our trainer
    targets = [target.to(images.device) for target in draw_targets(len(images))]
    labels = [{"labels": target.labels, "boxes": target.boxes} for target in targets]
    ready = normalized(images)

    def our_loss() -> Tensor:
        return criterion(ours(images), targets)["loss"]

    def their_loss() -> Tensor:
        losses = judge(network(ready, labels), labels)
        return sum(weight * losses[name] for name, weight in judge.weight_dict.items() if name in losses)

    return {"ours": step_of(ours, our_loss), "rfdetr": step_of(network, their_loss)}


if __name__ == "__main__":
    main()
