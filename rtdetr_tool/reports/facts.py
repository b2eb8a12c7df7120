"""Facts that make a report reproducible: machine, versions, time and the resolved spec."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import torch

from rtdetr_tool.redaction import mask_secrets
from rtdetr_tool.reports.page import Block, Code, Section, Table
from rtdetr_tool.version import package_version

_PACKAGES = ("torch", "torchvision", "pytorch-lightning", "timm", "onnxruntime", "hotcoco", "numpy")


def machine_facts() -> dict[str, str]:
    """The processor, GPUs, memory, operating system and versions of the packages that matter."""
    facts = {
        "rtdetr": package_version(),
        "Python": platform.python_version(),
        "system": platform.platform(terse=True),
        "CPU": f"{_cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "GPU": _gpu_names(),
    }
    memory = _memory_gib()
    if memory is not None:
        facts["memory"] = f"{memory:.0f} GiB"
    return {**facts, **{name: _version_of(name) for name in _PACKAGES}}


def run_section(timing: Mapping[str, str], spec_yaml: str) -> Section:
    """How long it took, where it ran, and the spec with its secrets masked."""
    blocks: list[Block] = []
    if timing:
        blocks.append(Table(["time", ""], [[name, value] for name, value in timing.items()]))
    blocks.append(Table(["machine and versions", ""], [[name, value] for name, value in machine_facts().items()]))
    if spec_yaml:
        blocks.append(Code("The resolved spec (experiment.yaml)", mask_secrets(spec_yaml)))
    return Section("Run", blocks)


def duration_text(seconds: float) -> str:
    """`1:02:03`, or `12.3 s` below a minute."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _gpu_names() -> str:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names) if names else "none"


def _memory_gib() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, OSError, ValueError):
        return None


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"
