"""Alternating measurements of several functions, and the machine they ran on; shared by the benchmarks for CPUs."""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

Run = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Times:
    """Seconds of every round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third; of a single round, the round itself."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    def __str__(self) -> str:
        first, third = self.quartiles
        return f"{self.median * 1e3:8.1f} ms ({first * 1e3:.1f} to {third * 1e3:.1f})"


def alternate(
    sides: Mapping[str, Run], rounds: int, clock: Clock = time.perf_counter, warm_up: int = 1
) -> dict[str, Times]:
    """Run all sides once per round, in an order that changes with every round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warm_up + rounds):
        for name in list(sides) if number % 2 else reversed(list(sides)):
            start = clock()
            sides[name]()
            if number >= warm_up:
                seconds[name].append(clock() - start)
    return {name: Times(tuple(values)) for name, values in seconds.items()}


def ratio(ours: Times, other: Times) -> tuple[float, float, float]:
    """The median ratio of the two sides' times in one round, and its quartiles: load that lasts for a round cancels."""
    each = Times(tuple(a / b for a, b in zip(ours.seconds, other.seconds, strict=True)))
    return each.median, *each.quartiles


def machine(*packages: str) -> str:
    """One line: processor, instruction set limit of oneDNN, threads of PyTorch, versions of it and of `packages`."""
    import os

    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    versions = [f"{name} {found}" for name in ("torch", *packages) if (found := version_of(name))]
    isa = f"at most {limit} in oneDNN" if limit else torch.backends.cpu.get_cpu_capability()
    return f"{processor()} ({isa}), {torch.get_num_threads()} threads, {', '.join(versions)}"


def processor() -> str:
    """Its name; Linux knows it better than `platform`."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def version_of(package: str) -> str | None:
    try:
        return version(package).split("-")[0]
    except PackageNotFoundError:
        return None


def peak_memory(run: Run) -> float | None:
    """MiB that the process needs during `run` in addition to what it had; None where Linux's counters are missing.

    Memory that was freed before is returned to the system first.
    """
    import ctypes

    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is resident now
        before = _status("VmRSS")
        run()
        return _status("VmHWM") - before
    except (OSError, KeyError):
        run()
        return None


def _status(field: str) -> float:
    """MiB of a line of /proc/self/status."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024
