"""Ranks of, and communication between, the processes of a run. Everything also works in a single process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from rtdetr_tool.errors import UserError
from rtdetr_tool.status import process_rank

# Environment variables by which a launcher (torchrun, SLURM, LSF, MPI, Lightning) describes its processes, or their
# beginnings.
_LAUNCHER_NAMES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE")
_LAUNCHER_PREFIXES = ("TORCHELASTIC_", "SLURM_", "JSM_", "OMPI_", "PMI_", "PMIX_", "LT_")


def rank() -> int:
    """The rank of this process. Before the process group exists, the one that the launcher has set."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return process_rank()


def world_size() -> int:
    """The number of processes of this run (1 until the process group exists)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_objects(items: list[Any]) -> list[Any]:
    """The items of all ranks, in rank order, on rank 0; an empty list on the other ranks."""
    if world_size() == 1:
        return list(items)
    received: list[Any] | None = [None] * world_size() if dist.get_rank() == 0 else None
    dist.gather_object(items, received, dst=0)
    return [item for part in received for item in part] if received is not None else []


def broadcast_object(item: Any) -> Any:
    """Rank 0's `item` on every rank."""
    if world_size() == 1:
        return item
    items = [item]
    dist.broadcast_object_list(items, src=0)
    return items[0]


def check_equal(values: Mapping[str, object]) -> None:
    """Check that all ranks have the same values of these fields; call it on every rank.

    Raises:
        UserError: on every rank, with the values by rank.
    """
    by_rank = broadcast_object(gather_objects([dict(values)]))
    for name in values:
        of_ranks = [rank_values[name] for rank_values in by_rank]
        if len(set(of_ranks)) > 1:
            raise UserError(
                f"{name}: the processes chose different values ({', '.join(map(str, of_ranks))}), because their GPUs "
                f"have different free memory; set {name} to {min(of_ranks, key=int)}"
            )


def start_processes(num_gpus: int = 1, gpu_ids: list[int] | None = None, num_nodes: int = 1) -> torch.device:
    """Join (or, as the first process, start) the processes of an evaluation or inference run. Returns the device.

    Like training, it starts the same command once per additional device, or uses the rank set by torchrun or SLURM.
    Afterwards, `rank()`, `world_size()` and `gather_objects` refer to these processes.
    """
    from rtdetr_tool.training.devices import choose_devices, log_device

    accelerator, devices = choose_devices(num_gpus, gpu_ids)
    log_device("auto", accelerator, num_gpus)
    count = devices if isinstance(devices, int) else len(devices)
    if count * num_nodes == 1 and not has_launcher():
        return _only_device(devices)
    from lightning_fabric import Fabric  # takes three seconds, so not for a single process

    strategy = "ddp" if count * num_nodes > 1 else "auto"
    fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy)
    fabric.launch()
    return fabric.device


def has_launcher() -> bool:
    """Whether a launcher has started this process, perhaps as one of several; it then decides about the processes."""
    return any(name in _LAUNCHER_NAMES or name.startswith(_LAUNCHER_PREFIXES) for name in os.environ)


def _only_device(devices: int | list[int]) -> torch.device:
    """The GPU in a list of one, which becomes the current one, or the CPU."""
    if isinstance(devices, int):
        return torch.device("cpu")
    device = torch.device("cuda", devices[0])
    torch.cuda.set_device(device)
    return device
