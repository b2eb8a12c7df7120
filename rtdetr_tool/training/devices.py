"""Choose the devices of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec.train import TrainSpec

logger = logging.getLogger(__name__)


def choose_devices(
    num_gpus: int, gpu_ids: Sequence[int] | None, accelerator: str = "auto"
) -> tuple[str, int | list[int]]:
    """Lightning's accelerator and devices: the GPUs in `gpu_ids`, the GPU of an Apple computer on request, or
    `num_gpus` processes on the CPU."""
    ids = list(gpu_ids) if gpu_ids else list(range(num_gpus))
    if len(ids) != num_gpus:
        raise SpecError(f"gpu_ids: expected num_gpus={num_gpus} items, but got {len(ids)} ({ids})")
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise SpecError("train.accelerator: gpu requires a CUDA GPU, but torch finds none; auto falls back to the CPU")
    if accelerator not in ("cpu", "mps") and torch.cuda.is_available():
        available = torch.cuda.device_count()
        missing = [index for index in ids if not 0 <= index < available]
        if missing:
            raise SpecError(
                f"gpu_ids: {missing} do not exist; this process sees {available} GPU(s), numbered from 0. A launcher "
                "must show all GPUs of a machine to each process (SLURM: --gpus-per-node instead of --gpus-per-task)"
            )
        return "gpu", ids
    if accelerator == "mps":
        return _apple_gpu(num_gpus)
    return "cpu", num_gpus


def log_device(requested: str, chosen: str, processes: int) -> None:
    """Tell the user if the run is on the CPU, and why; call it once per run."""
    if chosen != "cpu":
        return
    several = f" with {processes} processes" if processes > 1 else ""
    logger.info("%s on the CPU%s", "Running" if requested == "cpu" else "No GPU available; running", several)
    if requested == "auto" and torch.backends.mps.is_available():
        logger.info("This computer has an Apple GPU; set train.accelerator to mps to train on it")


def _apple_gpu(num_gpus: int) -> tuple[str, int]:
    if not torch.backends.mps.is_available():
        raise SpecError(
            "train.accelerator: mps requires an Apple GPU, but torch finds none; auto falls back to the CPU"
        )
    if num_gpus != 1:
        raise SpecError(f"train.num_gpus: {num_gpus} is invalid; expected 1 with train.accelerator=mps")
    return "mps", 1


def resolve_precision(train: TrainSpec) -> str:
    """`train.precision`, with `auto` replaced by what suits this machine's device."""
    if train.precision != "auto":
        return train.precision
    if train.accelerator in ("cpu", "mps") or not torch.cuda.is_available():
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(train.gpu_ids[0] if train.gpu_ids else 0)[0] >= 8 else "fp16"
