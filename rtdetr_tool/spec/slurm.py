"""The `automl.slurm` section: a search whose workers are jobs of a SLURM cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rtdetr_tool.spec.fields import field

_OPTION = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
# Set by the command: a job is one process on one machine, with its log in the results folder.
_RESERVED = ("array", "nodes", "ntasks", "ntasks-per-node", "output", "error", "open-mode", "signal", "wrap")


@dataclass(frozen=True)
class SlurmSpec:
    """Workers of a search as jobs of a cluster."""

    jobs: int | None = field(
        None,
        "Number of jobs, each a worker of the search; null = search on this machine.",
        min=1,
        max=1024,
        origin="ours",
    )
    cluster: str = field(
        "slurm",
        "slurm, or local: the same jobs as processes on this machine, to try a spec without a cluster.",
        options=("slurm", "local"),
        origin="ours",
    )
    partition: str | None = field(None, "Partition of the jobs; null = the cluster's default.", origin="ours")
    time: int = field(
        1440,
        "Time limit of a job, after which it is requeued and resumes its trials.",
        min=3,
        unit="minutes",
        origin="ours",
    )
    gpus: int | None = field(
        None,
        "GPUs of a job, each with a trial at a time; null = 1, or 0 with train.accelerator=cpu.",
        min=0,
        max=64,
        origin="ours",
    )
    cpus: int | None = field(None, "CPUs of a job; null = the cluster's default.", min=1, origin="ours")
    memory: float | None = field(
        None, "Memory of a job; null = the cluster's default.", min=0.1, unit="GB", origin="ours"
    )
    options: dict[str, Any] = field(
        {},
        "Further options of sbatch without --: {account: vision, qos: long, exclusive: true}.",
        origin="ours",
    )


def slurm_problems(section: SlurmSpec) -> Iterator[str]:
    """What is wrong with the `automl.slurm` section."""
    for name, value in section.options.items():
        option = f"automl.slurm.options: {name}"
        if not isinstance(name, str) or not _OPTION.fullmatch(name):
            yield f"{option} is invalid; expected the long name of an sbatch option without --, such as account"
        elif name in _RESERVED:
            yield f"{option} is set by the command and cannot be changed"
        elif value is not True and (isinstance(value, bool) or not isinstance(value, (str, int, float))):
            yield f"{option}: {value} is invalid; expected a text, a number, or true for an option without a value"
        elif "\n" in str(value):
            yield f"{option}: expected a single line"
