"""Count kernel launches, waits and bytes of a training step, ours next to the other implementations, without a GPU.

    python scripts/count_launches.py [--models r18 r50 nano dfine] [--batch 4] [--official CHECKOUT] [--memory]

Everything runs on the pretended device of tests/gpu_budget: real values, and each operator that would launch a kernel
is counted once. A step is transfer, forward pass, loss with matching, backward pass, clipping and fused AdamW, after a
warm-up; inference is the deployed network on one image. "Waits" are results read by the host, shapes that depend on
values, waits for events and blocking copies. Images have 320 px (RF-DETR 384) and ten objects each; launches do not
depend on the size.

`--memory` measures the bytes that the forward pass and the loss keep for the backward pass in float32 on the CPU, per
image, without weights, at `--memory-size` px. The official code is used if `--official` is a checkout of
lyuwenyu/RT-DETR, transformers and rfdetr if they are installed. On a GPU rfdetr requires torch_linear_assignment; if
that is not installed, SciPy solves its assignments here, which launches nothing.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from rtdetr_tool.ops.structures import Batch, Target
from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.training.module import DetectorModule
from scripts.bench_gpu_peers import Peer, build_peers
from tests.gpu_budget import pretended_cuda as pretended
from tests.gpu_budget.scenarios import CLASS_MAP, CLASSES, OnDevice

QUERIES, OBJECTS = 300, 10
SIZES = {"nano": 384}
WAITS = (
    pretended.WAIT,
    pretended.EVENT_WAIT,
    pretended.MASK,
    pretended.BLOCKING_COPY,
    pretended.HOST_INDEX,
    pretended.SYNC,
)
OURS: dict[str, dict[str, Any]] = {
    "r18": {"backbone": "resnet_18d", "expansion": 0.5, "dec_layers": 3, "num_queries": QUERIES},
    "r50": {"backbone": "resnet_50d", "num_queries": QUERIES},
    "nano": {"arch": "rfdetr", "rfdetr": {"variant": "nano", "num_queries": QUERIES}},
    "dfine": {"arch": "dfine", "dfine": {"variant": "s", "num_queries": QUERIES}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=tuple(OURS), default=list(OURS))
    parser.add_argument("--batch", type=int, default=4, help="images of a training step (default 4)")
    parser.add_argument("--official", type=Path, help="checkout of lyuwenyu/RT-DETR")
    parser.add_argument("--memory", action="store_true", help="also measure bytes kept for the backward pass")
    parser.add_argument("--memory-size", type=int, default=640, help="side of the images for --memory (default 640)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # random weights of the other implementations can make values that are slow to add
    if importlib.util.find_spec("torch_linear_assignment") is None:
        sys.modules["torch_linear_assignment"] = assignments_on_host()
    if "dfine" in options.models and importlib.util.find_spec("transformers"):
        move_dfine_loss()
    print("| | training step | optimizer | waits | inference | " + ("MiB per image |" if options.memory else ""))
    print("|---|---|---|---|---|" + ("---|" if options.memory else ""))
    for model in options.models:
        side = SIZES.get(model, 320)
        kept = f" {kept_by_ours(model, options.memory_size):.0f} |" if options.memory else ""
        show(f"rtdetr {model}", count_ours(model, side, options.batch), kept)
        for name, build in build_peers(model, torch.device("cpu"), side, QUERIES, options.official).items():
            peer = build()
            kept = f" {kept_by_peer(peer, SIZES.get(model, options.memory_size)):.0f} |" if options.memory else ""
            show(f"{name} {model}", count_peer(peer, side, options.batch), kept)
            del peer
            gc.collect()


def show(name: str, counts: tuple[int, int, int, int], kept: str) -> None:
    step, optimizer, waits, inference = counts
    print(f"| {name} | {step + optimizer} | {optimizer} | {waits} | {inference} |{kept}", flush=True)


def our_module(model: str, side: int) -> DetectorModule:
    torch.manual_seed(0)
    augmentation = {"multi_scales": [], "train_spatial_size": [side, side], "eval_spatial_size": [side, side]}
    document = {
        "results_dir": "unused",
        "model": {**OURS[model], "num_select": QUERIES},
        "dataset": {"num_classes": None if model == "nano" else CLASSES, "augmentation": augmentation},
        "train": {"activation_checkpoint": False},
    }
    module = DetectorModule(spec_from_dict(document), CLASS_MAP)
    if model == "r50":
        module.detector.freeze_backbone(norms=True, stages=0)  # as the reference trains it
    return module


def count_ours(model: str, side: int, batch: int) -> tuple[int, int, int, int]:
    """Kernels of the step and of the optimizer, waits, and kernels of the deployed network."""
    with pretended.PretendedCuda() as device:
        module = OnDevice(device, our_module(model, side))
        module.batch = draw_batch(side, batch)
        cost = module.train()
        network = module.runtime.detector.eval()
        return cost.kernels, cost.optimizer, cost.number_of(*WAITS), count_inference(device, network, side)


def move_dfine_loss() -> None:
    """Let the pretended device see how transformers moves the loss of D-FINE, which it creates in each step."""
    from transformers.loss.loss_d_fine import DFineLoss

    def to(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        pretended.to_cuda(self)
        return self

    DFineLoss.to = to


def count_peer(peer: Peer, side: int, batch: int) -> tuple[int, int, int, int]:
    with pretended.PretendedCuda(strict=False) as device:
        for network in networks_of(peer):
            pretended.to_cuda(network)
        parameters = [parameter for parameter in peer.network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
        for _ in range(2):
            optimizer.zero_grad()
            with device.count() as count:
                images, targets = to_device(draw_batch(side, batch))
                peer.loss(images, targets).backward()
                nn.utils.clip_grad_norm_(parameters, 0.1)
            kernels, events = count.kernels, count.number_of(*WAITS)
            with device.count() as count:
                optimizer.step()
        return kernels, count.kernels, events, count_inference(device, peer.predict, side)


def count_inference(device: pretended.PretendedCuda, predict: Callable[[Tensor], object], side: int) -> int:
    with torch.no_grad():
        for _ in range(2):
            with device.count() as count:
                predict(pretended.to_cuda(torch.rand(1, 3, side, side)))
    return count.kernels


def networks_of(peer: Peer) -> list[nn.Module]:
    """Networks and criteria that the functions of a peer refer to."""
    cells = [*(peer.loss.__closure__ or ()), *(getattr(peer.predict, "__closure__", None) or ())]  # type: ignore[attr-defined]  # functions
    found = [peer.network, *(cell.cell_contents for cell in cells), peer.predict]
    return [item for item in found if isinstance(item, nn.Module)]


def draw_batch(side: int, batch: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    targets = []
    for index in range(batch):
        sides = torch.rand(OBJECTS, 2, generator=generator) * 0.3 + 0.05
        centers = sides / 2 + torch.rand(OBJECTS, 2, generator=generator) * (1 - sides)
        labels = torch.randint(0, CLASSES, (OBJECTS,), generator=generator)
        targets.append(Target(torch.cat([centers, sides], 1), labels, index + 1, (side, side), (side, side)))
    return Batch(torch.randint(0, 255, (batch, 3, side, side), generator=generator, dtype=torch.uint8), targets)


def to_device(batch: Batch) -> tuple[Tensor, Sequence[Target]]:
    """Images in 0..1 and targets as the peers' loops move them: one asynchronous copy each."""
    moved = batch.to(pretended.CUDA, non_blocking=True)
    return moved.images.float() / 255, moved.targets


def kept_by_ours(model: str, side: int) -> float:
    side = SIZES.get(model, side)
    module = our_module(model, side).train()
    module.to(memory_format=torch.channels_last)
    batch = draw_batch(side, 2)

    def loss() -> Any:
        predictions = module.detector(module.prepare_images(batch, multi_scale=False), batch.targets)
        return module.criterion(predictions, batch.targets)

    return bytes_kept(module, loss, 2)


def kept_by_peer(peer: Peer, side: int) -> float:
    batch = draw_batch(side, 2)
    return bytes_kept(peer.network, lambda: peer.loss(batch.images.float() / 255, batch.targets), 2)


def bytes_kept(network: nn.Module, loss: Callable[[], Any], images: int) -> float:
    """MiB per image in storages that autograd keeps, except weights and buffers."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    storages: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = loss()
    total = sum(storage.nbytes() for storage in storages.values())
    del result
    return total / images / 2**20


def assignments_on_host() -> types.ModuleType:
    """A stand-in for torch_linear_assignment on the CPU."""
    module = types.ModuleType("torch_linear_assignment")

    def batch_linear_assignment(costs: Tensor) -> Tensor:
        plain = costs.elem if isinstance(costs, pretended.CudaTensor) else costs
        solved = torch.full(plain.shape[:2], -1, dtype=torch.long)
        for index, cost in enumerate(plain.detach().numpy()):
            rows, columns = linear_sum_assignment(cost)
            solved[index, torch.as_tensor(rows)] = torch.as_tensor(columns)
        return pretended.to_cuda(solved) if isinstance(costs, pretended.CudaTensor) else solved

    module.batch_linear_assignment = batch_linear_assignment  # type: ignore[attr-defined]  # a stand-in
    return module


if __name__ == "__main__":
    main()
