"""`dataset.batch_size: auto`: find the largest batch that fits into memory, and accumulate gradients to match."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdetr_tool.catalog import KEYPOINTS, MASKS
from rtdetr_tool.errors import UserError
from rtdetr_tool.ops.structures import Batch, Target
from rtdetr_tool.spec import ExperimentSpec
from rtdetr_tool.spec.sub_detectors import training_sizes
from rtdetr_tool.status import process_rank
from rtdetr_tool.training.devices import choose_devices, resolve_precision
from rtdetr_tool.training.mixed_precision import MIXED_PRECISION
from rtdetr_tool.training.module import DetectorModule
from rtdetr_tool.training.out_of_memory import exhausted_memory

logger = logging.getLogger(__name__)

AUTO = 0  # the value of `dataset.batch_size` for `auto`
_MEMORY_SHARE = 0.8  # of the free memory that a batch may use
_OBJECTS = 100  # per image of a trial batch


def resolve_batch_size(spec: ExperimentSpec, module: DetectorModule) -> ExperimentSpec:
    """The spec with a batch size instead of `auto`, and with `train.grad_accum_steps` to match.

    An optimizer step sees about `train.effective_batch_size` images over all processes, whatever fits. The batch size
    is doubled up to the share of one process, and each size is tried at the largest image size of multi-scale training.
    """
    accelerator, devices = choose_devices(spec.train.num_gpus, spec.train.gpu_ids, spec.train.accelerator)
    ids = list(range(devices)) if isinstance(devices, int) else devices
    share = max(1, -(-spec.train.effective_batch_size // (len(ids) * spec.train.num_nodes)))
    device = torch.device("cuda", ids[process_rank() % len(ids)]) if accelerator == "gpu" else torch.device("cpu")
    fits = _fits_gpu if accelerator == "gpu" else _fits_cpu
    saved = {name: tensor.clone() for name, tensor in module.to(device).state_dict().items()}
    module.spec = _at_largest_size(spec)
    try:
        with torch.random.fork_rng():
            size = largest_fitting(share, lambda count: fits(module, count, device))
    finally:
        module.load_state_dict(saved)
        module.spec = spec
        module.zero_grad(set_to_none=True)
    if size == 0:
        raise UserError(
            "dataset.batch_size: auto found that not even one image fits into memory. Lower "
            "dataset.augmentation.train_spatial_size and multi_scales, set train.activation_checkpoint and "
            "train.recompute_norms to true, or use a smaller model."
        )
    steps = -(-share // size)
    size = -(-share // steps)  # equal parts, so that a step sees hardly more images than asked for
    logger.info("dataset.batch_size: auto uses batches of %d images and %d batches per optimizer step", size, steps)
    dataset, train = replace(spec.dataset, batch_size=size), replace(spec.train, grad_accum_steps=steps)
    return replace(spec, dataset=dataset, train=train)


def _at_largest_size(spec: ExperimentSpec) -> ExperimentSpec:
    largest = max(training_sizes(spec), key=lambda size: size[0] * size[1])
    fixed = replace(spec.dataset.augmentation, multi_scales=[], train_spatial_size=list(largest))
    return replace(spec, dataset=replace(spec.dataset, augmentation=fixed))


def largest_fitting(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest of 1, 2, 4, ..., `limit` that fits, or 0 if not even 1 does."""
    size, largest = 1, 0
    while size <= limit and fits(size):
        largest = size
        size = limit if largest < limit < 2 * size else 2 * size
    return largest


def _fits_gpu(module: DetectorModule, count: int, device: torch.device) -> bool:
    """Run a training step with an optimizer, and check that it leaves some memory free."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        _step(module, count, device)
    except RuntimeError as error:  # cuBLAS and cuDNN have no exception type of their own
        if exhausted_memory(error) != "GPU":
            raise
        return False
    finally:
        module.zero_grad(set_to_none=True)
    total = torch.cuda.get_device_properties(device).total_memory
    return torch.cuda.max_memory_reserved(device) <= _MEMORY_SHARE * total


def _fits_cpu(module: DetectorModule, count: int, device: torch.device) -> bool:
    """Estimate the memory of a step from the tensors it saves for its backward pass: a CPU has no failure to catch."""
    weights = {t.untyped_storage().data_ptr(): t.nbytes for t in module.state_dict().values()}
    saved: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        module.compute_losses(trial_batch(module, min(count, 2), device))
    activations = 2 * sum(saved.values()) * count / min(count, 2)  # and their gradients
    needed = activations + 4 * sum(weights.values())  # gradients and the optimizer's state
    return bool(needed <= _MEMORY_SHARE * free_memory())


def _step(module: DetectorModule, count: int, device: torch.device) -> None:
    optimizer = module.configure_optimizers()["optimizer"]
    precision = MIXED_PRECISION[resolve_precision(module.spec.train)].autocast
    with torch.autocast(device.type, precision, enabled=precision is not None):
        loss = module.compute_losses(trial_batch(module, count, device))["loss"]
    loss.backward()
    optimizer.step()


def trial_batch(module: DetectorModule, count: int, device: torch.device) -> Batch:
    """Gray images of the training size with many objects each."""
    height, width = module.spec.dataset.augmentation.train_spatial_size
    boxes = torch.rand(_OBJECTS, 4) * 0.4 + 0.1
    labels = torch.zeros(_OBJECTS, dtype=torch.long)
    shapes: dict[str, Any] = {}
    if module.detector.predicts == MASKS:
        shapes[MASKS] = torch.ones(_OBJECTS, height, width, dtype=torch.bool)
    elif module.detector.predicts == KEYPOINTS:
        most = max(module.spec.model.keypoints.counts)
        shapes[KEYPOINTS] = torch.cat([torch.rand(_OBJECTS, most, 2), torch.full((_OBJECTS, most, 1), 2.0)], dim=-1)
    targets = [Target(boxes, labels, number, (height, width), (width, height), **shapes) for number in range(count)]
    shape = (count, module.detector.num_channels, height, width)
    return Batch(torch.full(shape, 127, dtype=torch.uint8), targets).to(device)


def free_memory() -> int:
    """Bytes of memory that are available on this machine."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024
