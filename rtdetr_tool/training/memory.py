"""What to lower when the memory of the device or of the machine does not suffice for a run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rtdetr_tool.errors import RtdetrError, UserError
from rtdetr_tool.spec import ExperimentSpec

_DEAD_WORKER = re.compile(r"DataLoader worker .*(killed by signal|exited unexpectedly)")


@contextmanager
def memory_explained(spec: ExperimentSpec) -> Iterator[None]:
    """Turn torch's error about memory into ours: the settings that decide how much is needed, with their values."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"The GPU ran out of memory ({_first_sentence(error)}). {what_to_lower(spec)}") from error
    except RuntimeError as error:
        found = _root(error)
        what = _first_sentence(found)
        if "DefaultCPUAllocator" in str(found):
            raise UserError(f"The machine ran out of memory ({what}). {what_to_lower(spec)}") from error
        if _DEAD_WORKER.search(what):
            raise RtdetrError(
                f"A data worker process died ({what}). If the system killed it, the memory of the machine or "
                f"container (or its /dev/shm) was used up: lower dataset.workers (now {spec.dataset.workers}) or "
                f"dataset.batch_size (now {spec.dataset.batch_size}). The same command goes on from the checkpoint."
            ) from error
        raise


def _root(error: BaseException) -> BaseException:
    """What torch said of a dead worker, which it raises wherever the program is: others may have wrapped it there."""
    found: BaseException | None = error
    while found is not None and not _DEAD_WORKER.search(str(found)):
        found = found.__cause__ or found.__context__
    return error if found is None else found


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
    return str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
