"""What `benchmark` measures: the runtimes that a model can have here, the images, the network's size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from rtdetr_tool.data.build_sources import pixel_format_of, source_images
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.errors import RtdetrError, UserError
from rtdetr_tool.formats.opening import format_of, open_detector
from rtdetr_tool.formats.table import FORMATS, exported_formats, size_of
from rtdetr_tool.spec import BenchmarkSpec, ExperimentSpec, LoadedSpec
from rtdetr_tool.spec.fields import is_blank
from rtdetr_tool.workflows.benchmark_steps import (
    EAGER,
    OPTIMIZED,
    Candidate,
    Measurement,
    requested_size,
)
from rtdetr_tool.workflows.export import export_detector

_IMAGES = 32  # files that are used in turn


@dataclass(frozen=True)
class Network:
    """Size of a network; `gflops` of convolutions and matrix products for one image."""

    parameters: int
    gflops: float
    input: tuple[int, int]  # height, width


def describe_network(loaded: LoadedSpec) -> Network | None:
    """Parameters and operations of the weights; None for a deployed file, which does not state them."""
    section = loaded.spec.benchmark
    if not format_of(section.checkpoint).trainable:
        return None
    opened = open_detector(section.checkpoint, loaded, requested_size(section))
    augmentation = opened.spec.dataset.augmentation
    size = input_size(augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio)
    detector = opened.detector.deploy()
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        detector(torch.zeros(1, detector.num_channels, *size))
    return Network(sum(p.numel() for p in detector.parameters()), counter.get_total_flops() / 1e9, size)


def candidates(loaded: LoadedSpec, folder: Path) -> tuple[list[Candidate], list[Measurement]]:
    """The runtimes to measure and those to skip, after exporting weights to every format that is installed."""
    section = loaded.spec.benchmark
    row = format_of(section.checkpoint)
    if not row.trainable:
        for name in ("decoder_layers", "num_queries"):
            if getattr(section, name):
                raise UserError(f"benchmark.{name} requires weights, but {section.checkpoint} is {row.title}")
        return [_candidate(row.name, section.checkpoint)], []
    runtimes = [
        Candidate(EAGER, section.checkpoint, eager=True),
        _candidate(OPTIMIZED, section.checkpoint),
        replace(_candidate(f"{OPTIMIZED} bf16", section.checkpoint), precision="bf16"),
    ]
    for title, reduced in _reductions(loaded):
        runtimes.append(replace(_candidate(f"{OPTIMIZED}, {title}", section.checkpoint), reduced=reduced))
    skipped = []
    for other in exported_formats():
        if reason := other.other_systems():
            skipped.append(Measurement(other.name, skipped=reason))
            continue
        try:
            other.to_export.require(other.title)
            other.to_run.require(other.title)
            if _requested(section, other.name):
                runtimes.append(_candidate(other.name, str(_export(loaded, other.name, folder))))
        except RtdetrError as error:
            skipped.append(Measurement(other.name, skipped=str(error)))
    if not torch.cuda.is_available():
        skipped.append(Measurement("tensorrt", skipped="engines need an NVIDIA GPU; build one with gen_trt_engine"))
    runtimes = [candidate for candidate in runtimes if _requested(section, candidate.name)]
    _check_names(section, [*(c.name for c in runtimes), *(m.name for m in skipped)])
    return runtimes, [measurement for measurement in skipped if _requested(section, measurement.name)]


def _reductions(loaded: LoadedSpec) -> list[tuple[str, dict[str, int]]]:
    """What to measure the weights with: its title, and the values of spec fields."""
    section = loaded.spec.benchmark
    listed = {name: values for name in ("decoder_layers", "num_queries") if (values := getattr(section, name))}
    if not listed:
        return []
    model = open_detector(section.checkpoint, loaded, requested_size(section)).spec.model
    family, whole, result = model.family, model.family.whole_detector(model), []
    for choice, numbers in listed.items():
        if reason := family.fixed_reason(model, choice):
            raise UserError(f"benchmark.{choice} is not supported with {family.title}: {reason}; set it to []")
        if max(numbers) > whole[choice]:
            raise UserError(
                f"benchmark.{choice}: {max(numbers)} is invalid; expected at most {whole[choice]}, which the model has"
            )
        field, words = family.sub_fields[choice], choice.replace("num_", "").replace("_", " ")
        result += [(f"{number} {words}", {f"model.{field.name}": number + field.offset}) for number in numbers]
    return result


def _requested(section: BenchmarkSpec, name: str) -> bool:
    return section.runtimes is None or name in section.runtimes


def _check_names(section: BenchmarkSpec, known: Sequence[str]) -> None:
    unknown = [name for name in section.runtimes or [] if name not in known]
    if unknown:
        names = [EAGER, OPTIMIZED, f"{OPTIMIZED} bf16", *(row.name for row in exported_formats())]
        raise UserError(f"benchmark.runtimes: {', '.join(unknown)} is invalid; expected {', '.join(names)}")


def _candidate(name: str, path: str) -> Candidate:
    return Candidate(name, path, megabytes=size_of(path) / 1e6 if os.path.exists(path) else None)


def _export(loaded: LoadedSpec, name: str, folder: Path) -> Path:
    """Export the weights, verified as `rtdetr export` does, into `folder`/models."""
    section, target = loaded.spec.benchmark, folder / "models" / f"model{FORMATS[name].suffix}"
    opened = open_detector(section.checkpoint, loaded, requested_size(section))
    export = replace(
        loaded.spec.export,
        checkpoint=section.checkpoint,
        onnx_file=str(target),
        results_dir=str(folder / "models"),
        format=name,
        batch_size=-1,
        overwrite=True,
        on_cpu=True,
    )
    return export_detector(opened, export, loaded.spec.inference.conf_threshold)


def benchmark_images(spec: ExperimentSpec) -> list[str]:
    """Image files of the first source that the spec has; UserError without one."""
    for split in ("test", "val", "infer"):
        if not is_blank(getattr(spec.dataset, f"{split}_data_sources")):
            return source_images(spec.dataset, split, not pixel_format_of(spec).is_rgb)[:_IMAGES]
    raise UserError(
        "benchmark: images are required, but not set; expected dataset.test_data_sources, val_data_sources, "
        "infer_data_sources or dataset_dir"
    )


def to_dict(network: Network | None, measurements: Sequence[Measurement], section: BenchmarkSpec) -> dict[str, Any]:
    """The content of benchmark.json."""
    return {
        "checkpoint": section.checkpoint,
        "network": None if network is None else asdict(network),
        "threads": section.threads or torch.get_num_threads(),
        "warmup": section.warmup,
        "seconds": section.seconds,
        "runtimes": [asdict(measurement) for measurement in measurements],
    }
