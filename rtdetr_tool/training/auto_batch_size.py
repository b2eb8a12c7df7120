"""`dataset.batch_size: auto`: the largest batch that fits, and how many of them make one optimizer step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rtdetr_tool.errors import UserError
from rtdetr_tool.ops.structures import Batch, Target
from rtdetr_tool.spec import ExperimentSpec
from rtdetr_tool.status import process_rank
from rtdetr_tool.training.devices import choose_devices
from rtdetr_tool.training.module import DetectorModule

logger = logging.getLogger(__name__)

AUTO = 0  # what `auto` means in `dataset.batch_size`
_SHARE = 0.8  # of free memory that a batch may take
_OBJECTS = 100  # in each image of a trial


def settle_batch_size(spec: ExperimentSpec, module: DetectorModule) -> ExperimentSpec:
    """The spec with a batch size in place of `auto`, and with `train.grad_accum_steps` to match.

    An optimizer step is to see `train.effective_batch_size` images of all processes together, whatever fits. Batches
    grow by doubling up to a process's share of that; each is tried at the largest size of multi-scale training.
    """
    accelerator, devices = choose_devices(spec.train.num_gpus, spec.train.gpu_ids, spec.train.accelerator)
    ids = list(range(devices)) if isinstance(devices, int) else devices
    wanted = max(1, -(-spec.train.effective_batch_size // (len(ids) * spec.train.num_nodes)))
    device = torch.device("cuda", ids[process_rank() % len(ids)]) if accelerator == "gpu" else torch.device("cpu")
    fits = _fits_gpu if accelerator == "gpu" else _fits_cpu
    kept = {name: tensor.clone() for name, tensor in module.to(device).state_dict().items()}
    module.spec = _at_the_largest_size(spec)
    try:
        with torch.random.fork_rng():
            size = largest_fitting(wanted, lambda count: fits(module, count, device))
    finally:
        module.load_state_dict(kept)
        module.spec = spec
        module.zero_grad(set_to_none=True)
    if size == 0:
        raise UserError(
            "dataset.batch_size auto: not even one image fits; lower dataset.augmentation.train_spatial_size and "
            "multi_scales, set train.activation_checkpoint to true, or take a smaller model"
        )
    steps = -(-wanted // size)
    size = -(-wanted // steps)  # equal parts, so that a step sees hardly more images than wanted
    logger.info("dataset.batch_size auto: batches of %d images, %d for each optimizer step.", size, steps)
    dataset, train = replace(spec.dataset, batch_size=size), replace(spec.train, grad_accum_steps=steps)
    return replace(spec, dataset=dataset, train=train)


def _at_the_largest_size(spec: ExperimentSpec) -> ExperimentSpec:
    augmentation = spec.dataset.augmentation
    sizes = [[side, side] if isinstance(side, int) else list(side) for side in augmentation.multi_scales]
    largest = max(sizes or [augmentation.train_spatial_size], key=lambda size: size[0] * size[1])
    fixed = replace(augmentation, multi_scales=[], train_spatial_size=largest)
    return replace(spec, dataset=replace(spec.dataset, augmentation=fixed))


def largest_fitting(wanted: int, fits: Callable[[int], bool]) -> int:
    """The largest of 1, 2, 4, ... and `wanted` that fits, at most `wanted`; 0 when not even 1 does."""
    size, largest = 1, 0
    while size <= wanted and fits(size):
        largest = size
        size = wanted if largest < wanted < 2 * size else 2 * size
    return largest


def _fits_gpu(module: DetectorModule, count: int, device: torch.device) -> bool:
    """Whether a training step with an optimizer leaves some memory free."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        _step(module, count, device)
    except torch.OutOfMemoryError:
        return False
    finally:
        module.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_reserved(device) <= _SHARE * torch.cuda.get_device_properties(device).total_memory


def _fits_cpu(module: DetectorModule, count: int, device: torch.device) -> bool:
    """Whether what a step keeps for its backward pass is likely to fit: a CPU gives no sign before memory is gone."""
    weights = {t.untyped_storage().data_ptr(): t.nbytes for t in module.state_dict().values()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        module.compute_losses(trial_batch(module, min(count, 2), device))
    activations = 2 * sum(kept.values()) * count / min(count, 2)  # and their gradients
    needed = activations + 4 * sum(weights.values())  # gradients and the optimizer's state
    return needed <= _SHARE * free_memory()


def _step(module: DetectorModule, count: int, device: torch.device) -> None:
    optimizer = module.configure_optimizers()["optimizer"]
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(module.spec.train.precision)
    with torch.autocast(device.type, precision, enabled=precision is not None):
        loss = module.compute_losses(trial_batch(module, count, device))["loss"]
    loss.backward()
    optimizer.step()


def trial_batch(module: DetectorModule, count: int, device: torch.device) -> Batch:
    """Grey images of the training size, each with many objects."""
    height, width = module.spec.dataset.augmentation.train_spatial_size
    boxes = torch.rand(_OBJECTS, 4) * 0.4 + 0.1
    labels = torch.zeros(_OBJECTS, dtype=torch.long)
    targets = [Target(boxes, labels, number, (height, width), (width, height)) for number in range(count)]
    return Batch(torch.full((count, 3, height, width), 127, dtype=torch.uint8), targets).to(device)


def free_memory() -> int:
    """Bytes of the machine that programs can still have."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024
