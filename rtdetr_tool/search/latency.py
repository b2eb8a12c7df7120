"""The latency of weights, measured as `rtdetr benchmark` measures it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rtdetr_tool.errors import UserError
from rtdetr_tool.files import make_folder_below
from rtdetr_tool.spec import BenchmarkSpec, ExperimentSpec, LoadedSpec


def latency_section(spec: ExperimentSpec, runtime: str, checkpoint: str) -> BenchmarkSpec:
    """The `benchmark` section for one runtime and image."""
    return replace(
        spec.benchmark,
        checkpoint=checkpoint,
        runtimes=[runtime],
        batch_sizes=[1],
        decoder_layers=[],
        num_queries=[],
        score=False,
        gpu_id=spec.train.gpu_ids[0],
        on_cpu=spec.train.accelerator == "cpu" or spec.benchmark.on_cpu,
    )


def measure_latency(
    spec: ExperimentSpec, checkpoint: str, runtime: str, folder: Path, explicit: Mapping[str, Any] | None = None
) -> float:
    """Median milliseconds for one image, without decoding.

    Args:
        folder: where a file that the runtime needs is exported to.
        explicit: nested plain data, the values of the spec that take precedence over those of the checkpoint.
    """
    from rtdetr_tool.workflows.benchmark import benchmark_images, candidates
    from rtdetr_tool.workflows.benchmark_steps import measure

    section = latency_section(spec, runtime, checkpoint)
    loaded = LoadedSpec(replace(spec, benchmark=section), dict(explicit or {}))
    make_folder_below(folder, folder / "models")
    runtimes, skipped = candidates(loaded, folder)
    measured = measure(runtimes[0], loaded, benchmark_images(spec)) if runtimes else skipped[0]
    if measured.skipped or not measured.timings:
        raise UserError(f"{measured.name} cannot run this model here: {measured.skipped}")
    return measured.timings[0].median
