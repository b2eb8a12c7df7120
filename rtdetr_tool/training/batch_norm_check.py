"""Batch norms that would see one value per channel: found before a run trains, by looking."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtdetr_tool.errors import UserError
from rtdetr_tool.spec import ExperimentSpec
from rtdetr_tool.training.devices import choose_devices


def check_batch_norms(spec: ExperimentSpec, detector: nn.Module, images: int) -> None:
    """UserError where a batch norm in training cannot form a variance: its feature map is one pixel of one image.

    `images` is the size of the training set. A batch of one image at the smallest size of training goes through the
    network in evaluation mode, which changes no statistics.
    """
    _, devices = choose_devices(spec.train.num_gpus, spec.train.gpu_ids, spec.train.accelerator)
    processes = (devices if isinstance(devices, int) else len(devices)) * spec.train.num_nodes
    if _smallest_batch(spec.dataset.batch_size, images, processes) > 1 or (processes > 1 and spec.train.sync_bn):
        return
    height, width = _smallest_size(spec)
    name = _lonely_norm(detector, height, width)
    if name is not None:
        raise UserError(
            f"Batches of 1 image at {height} x {width} cannot be trained: the batch norm {name} would see one value "
            "per channel and has no variance to compute. Use at least 2 images (dataset.batch_size, now "
            f"{spec.dataset.batch_size}; the training data has {images}), or a larger "
            "dataset.augmentation.train_spatial_size and multi_scales."
        )


def _smallest_batch(batch_size: int, images: int, processes: int) -> int:
    """As the sampler deals images out: full batches, except that few images make one smaller batch."""
    return batch_size if images >= batch_size * processes else -(-images // processes)


def _smallest_size(spec: ExperimentSpec) -> tuple[int, int]:
    augmentation = spec.dataset.augmentation
    sizes = [[size, size] if isinstance(size, int) else size for size in augmentation.multi_scales]
    height, width = min(sizes or [augmentation.train_spatial_size], key=lambda size: size[0] * size[1])
    return height, width


def _lonely_norm(detector: nn.Module, height: int, width: int) -> str | None:
    """The name of a batch norm in training that sees one value per channel of one image, if there is one."""
    was_training, found = detector.training, []
    detector.train()
    kind = nn.modules.batchnorm._BatchNorm
    trained = [(name, module) for name, module in detector.named_modules() if isinstance(module, kind)]
    trained = [(name, module) for name, module in trained if module.training]

    def look(name: str, given: Tensor) -> None:
        if given.numel() == given.shape[1]:
            found.append(name)

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs[0])) for name, module in trained
    ]
    try:
        if trained:
            detector.eval()
            with torch.inference_mode():
                detector(torch.zeros(1, 3, height, width, device=next(detector.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
        detector.train(was_training)
    return found[0] if found else None
