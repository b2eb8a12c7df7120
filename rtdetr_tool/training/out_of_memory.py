"""Explain which settings to lower when a run is out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rtdetr_tool.data.loader import explain_dead_worker
from rtdetr_tool.errors import UserError
from rtdetr_tool.spec import ExperimentSpec
from rtdetr_tool.spec.sub_detectors import training_sizes
from rtdetr_tool.training.devices import resolve_precision

_GPU_ERRORS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


@contextmanager
def explain_out_of_memory(spec: ExperimentSpec) -> Iterator[None]:
    """Turn out-of-memory errors into a UserError that lists the settings to lower, with their values."""
    dataset = spec.dataset
    try:
        with explain_dead_worker(
            f"dataset.workers (now {dataset.workers}) or dataset.batch_size (now {dataset.batch_size}); "
            "run the same command again to resume from the latest checkpoint"
        ):
            yield
    except (RuntimeError, MemoryError) as error:
        memory = exhausted_memory(error)
        if memory is None:
            raise
        raise UserError(f"The {memory} ran out of memory ({_first_sentence(error)}). {memory_advice(spec)}") from error


def exhausted_memory(error: RuntimeError | MemoryError) -> str | None:
    """`GPU`, `machine`, or None for another error. Only torch's GPU allocator raises a separate exception type."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or any(message in text for message in _GPU_ERRORS):
        return "GPU"
    return "machine" if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text else None


def memory_advice(spec: ExperimentSpec) -> str:
    """The settings that save memory, cheapest first."""
    train, dataset = spec.train, spec.dataset
    height, width = dataset.augmentation.train_spatial_size
    scales = [size if isinstance(size, int) else max(size) for size in dataset.augmentation.multi_scales or ()]
    sizes = f"dataset.augmentation.train_spatial_size (now {height} x {width})"
    if train.supernet.resolution and train.supernet.enabled:
        sizes += f" and the largest of train.supernet.resolution (now {max(max(s) for s in training_sizes(spec))})"
    elif scales:
        sizes += f" and the largest of dataset.augmentation.multi_scales (now {max(scales)})"
    advice = []
    if not train.recompute_norms and not train.compile:
        advice.append("set train.recompute_norms to true (now false)")
    if not train.activation_checkpoint:
        advice.append("set train.activation_checkpoint to true (now false)")
    if resolve_precision(train) == "fp32":
        advice.append("set train.precision to bf16 (now fp32)")
    if train.enable_ema and not train.ema.cpu_offload:
        advice.append("set train.ema.cpu_offload to true (now false)")
    advice += [f"lower dataset.batch_size (now {dataset.batch_size} per process)", f"lower {sizes}"]
    if train.num_gpus > 1 and train.distributed_strategy == "ddp" and not train.enable_ema:
        advice.append("set train.distributed_strategy to fsdp (now ddp)")
    return f"Try, cheapest first: {'; '.join(advice)}."


def _first_sentence(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".") or type(error).__name__
