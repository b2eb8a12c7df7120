"""Find batch norms that would see only one value per channel, before a run starts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtdetr_tool.errors import UserError
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.spec import ExperimentSpec
from rtdetr_tool.spec.sub_detectors import training_sizes
from rtdetr_tool.training.devices import choose_devices


def check_batch_norms(spec: ExperimentSpec, detector: Detector, images: int) -> None:
    """Raise UserError if a trained batch norm cannot compute a variance, because it sees one pixel of one image.

    A batch of one image at the smallest training size is run in eval mode, which does not change statistics.

    Args:
        images: size of the training set.
    """
    _, devices = choose_devices(spec.train.num_gpus, spec.train.gpu_ids, spec.train.accelerator)
    processes = (devices if isinstance(devices, int) else len(devices)) * spec.train.num_nodes
    if _smallest_batch(spec.dataset.batch_size, images, processes) > 1 or (processes > 1 and spec.train.sync_bn):
        return
    height, width = min(training_sizes(spec), key=lambda size: size[0] * size[1])
    name = _norm_without_variance(detector, height, width)
    if name is not None:
        raise UserError(
            f"A batch of 1 image at {height} x {width} cannot be trained: the batch norm {name} would see only one "
            "value per channel and could not compute a variance. Use batches of at least 2 images (dataset.batch_size "
            f"is {spec.dataset.batch_size}, the training data has {images} images), or a larger "
            "dataset.augmentation.train_spatial_size and multi_scales."
        )


def _smallest_batch(batch_size: int, images: int, processes: int) -> int:
    """The smallest batch of the sampler: it drops incomplete batches, unless there are fewer images than one batch."""
    return batch_size if images >= batch_size * processes else -(-images // processes)


def _norm_without_variance(detector: Detector, height: int, width: int) -> str | None:
    """The name of a trained batch norm that sees one value per channel for one image, or None."""
    was_training, names = detector.training, []
    detector.train()
    norms = [
        (name, module)
        for name, module in detector.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    ]

    def check(name: str, features: Tensor) -> None:
        if features.numel() == features.shape[1]:
            names.append(name)

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: check(name, inputs[0])) for name, module in norms
    ]
    try:
        if norms:
            detector.eval()
            with torch.inference_mode():
                device = next(detector.parameters()).device
                detector(torch.zeros(1, detector.num_channels, height, width, device=device))
    finally:
        for hook in hooks:
            hook.remove()
        detector.train(was_training)
    return names[0] if names else None
