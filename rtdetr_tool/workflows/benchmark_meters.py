"""Measure the time and the memory of a process, and of its GPU."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import torch


class Clock:
    """Seconds between laps, after the device has finished its work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = self._now()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def lap(self) -> float:
        now = self._now()
        elapsed, self._start = now - self._start, now
        return elapsed


class MemoryMeter:
    """The most memory in use since this was created, on top of what was in use then."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before: float | None = torch.cuda.memory_allocated(device) / 2**20
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        self._before = _process_memory("VmRSS")

    def mib(self) -> float | None:
        """None where the system does not say."""
        if self._device.type == "cuda":
            peak: float | None = torch.cuda.max_memory_allocated(self._device) / 2**20
        else:
            peak = _process_memory("VmHWM")
        return None if peak is None or self._before is None else peak - self._before


def _process_memory(name: str) -> float | None:
    """A value of /proc/self/status in MiB; None on systems without it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), None)
