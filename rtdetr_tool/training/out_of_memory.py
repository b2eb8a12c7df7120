"""What to lower when the memory of the device or of the machine does not suffice for a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rtdetr_tool.data.loader import dead_worker_explained
from rtdetr_tool.errors import UserError
from rtdetr_tool.spec import ExperimentSpec

_GPU_SIGNS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


@contextmanager
def memory_explained(spec: ExperimentSpec) -> Iterator[None]:
    """Turn torch's error about memory into ours: the settings that decide how much is needed, with their values."""
    dataset = spec.dataset
    try:
        with dead_worker_explained(
            f"dataset.workers (now {dataset.workers}) or dataset.batch_size (now {dataset.batch_size}); "
            "the same command goes on from the checkpoint"
        ):
            yield
    except (RuntimeError, MemoryError) as error:
        lacking = _lacking(error)
        if lacking is None:
            raise
        raise UserError(f"The {lacking} ran out of memory ({_first_sentence(error)}). {what_to_lower(spec)}") from error


def _lacking(error: RuntimeError | MemoryError) -> str | None:
    """Whose memory was used up, if that is what the error says; only torch's allocator for GPUs has a type for it."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in _GPU_SIGNS):
        return "GPU"
    return "machine" if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text else None


def what_to_lower(spec: ExperimentSpec) -> str:
    """The settings that need memory, the ones that cost least first."""
    train, dataset = spec.train, spec.dataset
    height, width = dataset.augmentation.train_spatial_size
    scales = [size if isinstance(size, int) else max(size) for size in dataset.augmentation.multi_scales or ()]
    sizes = f"dataset.augmentation.train_spatial_size (now {height} x {width})"
    if scales:
        sizes += f" and the largest of dataset.augmentation.multi_scales (now {max(scales)})"
    advice = []
    if not train.activation_checkpoint:
        advice.append("set train.activation_checkpoint to true (now false)")
    if train.precision == "fp32":
        advice.append("set train.precision to bf16 (now fp32)")
    if train.enable_ema and not train.ema.cpu_offload:
        advice.append("set train.ema.cpu_offload to true (now false)")
    advice += [f"lower dataset.batch_size (now {dataset.batch_size} per process)", f"lower {sizes}"]
    if train.num_gpus > 1 and train.distributed_strategy == "ddp" and not train.enable_ema:
        advice.append("set train.distributed_strategy to fsdp (now ddp)")
    return f"What helps, what costs least first: {'; '.join(advice)}."


def _first_sentence(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".") or type(error).__name__
