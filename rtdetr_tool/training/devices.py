"""Which devices a run takes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from rtdetr_tool.errors import SpecError

logger = logging.getLogger(__name__)


def choose_devices(
    num_gpus: int, gpu_ids: Sequence[int] | None, accelerator: str = "auto"
) -> tuple[str, int | list[int]]:
    """Lightning's accelerator and devices: the named GPUs, or on a CPU as many processes as `num_gpus` says."""
    ids = list(gpu_ids) if gpu_ids else list(range(num_gpus))
    if len(ids) != num_gpus:
        raise SpecError(f"gpu_ids names {len(ids)} GPUs ({ids}), num_gpus says {num_gpus}")
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise SpecError("train.accelerator is gpu, but torch sees no CUDA GPU here; auto falls back to the CPU")
    if accelerator != "cpu" and torch.cuda.is_available():
        found = torch.cuda.device_count()
        missing = [index for index in ids if not 0 <= index < found]
        if missing:
            raise SpecError(f"gpu_ids names {missing}, but this machine has {found} GPU(s), numbered from 0")
        return "gpu", ids
    processes = f" with {num_gpus} processes" if num_gpus > 1 else ""
    logger.info("%s on the CPU%s.", "Running" if accelerator == "cpu" else "No GPU was found: running", processes)
    return "cpu", num_gpus
