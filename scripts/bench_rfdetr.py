"""Time RF-DETR Nano against Roboflow's package, alternately in one process: inference, ONNX, a training step.

    python scripts/bench_rfdetr.py [--variant nano] [--steps 5] [--batch 2] [--device cpu] [--threads 1 --cpu-time]

Both have the same random weights, images and targets. Inference is one image: eager, ours as in `evaluate` and
`inference` (`TorchRuntime`), the package's as in `predict()`, plain and after `RFDETR.inference()` (traced); and the
ONNX file of each in onnxruntime. A training step is forward, loss, backward, clipping and fused AdamW.

Absolute times depend on the machine and its load; compare the ratio of the medians (ours / rfdetr).
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import rfdetr
import torch
from bench_peers import draw_targets, report, step_of
from rfdetr.config import TrainConfig
from rfdetr.models import build_criterion_from_config
from torch import Tensor, nn

from rtdetr_tool.catalog import LAYOUTS
from rtdetr_tool.families.rfdetr.names import from_rfdetr
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.formats.export_model import ExportModel
from rtdetr_tool.formats.onnx.export import export_graph
from rtdetr_tool.formats.torch.runtime import TorchRuntime
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.pixels import IMAGENET_MEAN, IMAGENET_STD
from rtdetr_tool.spec.model import ModelSpec

CLASSES = 90
CLASSES_OF_RFDETR = {"nano": rfdetr.RFDETRNano, "small": rfdetr.RFDETRSmall, "medium": rfdetr.RFDETRMedium}
Run = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variant", choices=CLASSES_OF_RFDETR, default="nano")
    parser.add_argument("--steps", type=int, default=5, help="timed alternations (default 5)")
    parser.add_argument("--batch", type=int, default=2, help="images of a training step (default 2)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="threads of torch and onnxruntime (default: torch's default)")
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure CPU time instead of wall time (for a busy machine)"
    )
    parser.add_argument("--only", nargs="*", choices=("eager", "onnx", "step"), default=("eager", "onnx", "step"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.getLogger("rf-detr").setLevel(logging.ERROR)
    clock = time.process_time if options.cpu_time else time.perf_counter
    reference, ours, spec = build_pair(options.variant, options.device)
    size = spec.rfdetr.resolution or reference.model_config.resolution
    images = torch.rand(options.batch, 3, size, size, device=options.device)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}, {size} px")
    sides = {
        "eager": lambda: eager_inference(reference, ours, images[:1]),
        "onnx": lambda: onnx_inference(reference, ours, images[:1].cpu()),
        "step": lambda: {f"training step, batch {options.batch}": training_steps(reference, ours, spec, images)},
    }
    for name in options.only:
        for title, (mine, other) in sides[name]().items():
            report(title, clock, options.steps, mine, other, "rfdetr")


def build_pair(variant: str, device: str) -> tuple[rfdetr.RFDETR, nn.Module, ModelSpec]:
    torch.manual_seed(0)
    reference = CLASSES_OF_RFDETR[variant](pretrain_weights=None, device=device, num_classes=CLASSES)
    spec = ModelSpec(arch="rfdetr", rfdetr=RfdetrSpec(variant=variant))
    ours = build_detector(spec, CLASSES + 1)
    ours.load_state_dict(from_rfdetr(reference.model.model.state_dict()))
    reference.model.model.to(device)
    return reference, ours.to(device), spec


def normalized(images: Tensor) -> Tensor:
    """Images as the package passes them to its network; ours normalizes inside."""
    mean, std = images.new_tensor(IMAGENET_MEAN), images.new_tensor(IMAGENET_STD)
    return (images - mean[:, None, None]) / std[:, None, None]


def eager_inference(reference: rfdetr.RFDETR, ours: nn.Module, image: Tensor) -> dict[str, tuple[Run, Run]]:
    network, ready = reference.model.model.eval(), normalized(image)
    runtime = TorchRuntime(ours, None, image.device)
    reference.inference(compile=True, batch_size=1)
    traced = reference.model.inference_model

    def our_pass() -> float:
        return runtime.predict(image).logits.sigmoid().sum().item()

    @torch.inference_mode()
    def their_pass() -> float:
        return network(ready)["pred_logits"].sigmoid().sum().item()

    @torch.inference_mode()
    def their_traced() -> float:
        return traced(ready)[1].sigmoid().sum().item()

    return {"inference, batch 1": (our_pass, their_pass), "against traced rfdetr": (our_pass, their_traced)}


def onnx_inference(reference: rfdetr.RFDETR, ours: nn.Module, image: Tensor) -> dict[str, tuple[Run, Run]]:
    size = (int(image.shape[2]), int(image.shape[3]))
    with tempfile.TemporaryDirectory() as folder:
        mine = Path(folder) / "ours.onnx"
        onnx.save(export_graph(ExportModel(ours.cpu(), layout=LAYOUTS["rfdetr"]), size, 1, 17), mine)
        other = Path(reference.export(output_dir=folder, format="onnx"))
        sessions = [session_of(path) for path in (mine, other)]
    ready = normalized(image).numpy()

    def run_of(session: onnxruntime.InferenceSession) -> Run:
        return lambda: torch.from_numpy(session.run(["labels"], {"input": ready})[0]).sigmoid().sum().item()

    return {"ONNX Runtime, batch 1": (run_of(sessions[0]), run_of(sessions[1]))}


def session_of(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def training_steps(reference: rfdetr.RFDETR, ours: nn.Module, spec: ModelSpec, images: Tensor) -> tuple[Run, Run]:
    """A training step of each implementation; returns the loss."""
    network = reference.model.model.train()
    settings = TrainConfig(dataset_dir=".", output_dir=".")
    judge = build_criterion_from_config(reference.model_config, settings)[0].train()
    criterion = build_criterion(spec).train()
    ours.train()
    targets = [target.to(images.device) for target in draw_targets(len(images))]
    labels = [{"labels": target.labels, "boxes": target.boxes} for target in targets]
    ready = normalized(images)

    def our_loss() -> Tensor:
        return criterion(ours(images), targets)["loss"]

    def their_loss() -> Tensor:
        losses = judge(network(ready, labels), labels)
        return sum(weight * losses[name] for name, weight in judge.weight_dict.items() if name in losses)

    return step_of(ours, our_loss), step_of(network, their_loss)


if __name__ == "__main__":
    main()
