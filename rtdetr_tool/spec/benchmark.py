"""The `benchmark` section: measure latency, throughput and memory of a model in every runtime."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_tool.spec.fields import MISSING, field
from rtdetr_tool.spec.run_model import OneDeviceSpec


@dataclass(frozen=True)
class BenchmarkSpec(OneDeviceSpec):
    """Measure latency, throughput and memory of a model in every runtime."""

    checkpoint: str = field(
        MISSING,
        "Model to measure. Weights are also exported to every format that is installed; other files run as they are.",
        path="read",
        origin="ours",
    )
    results_dir: str | None = field(
        None,
        "Folder of this command's results; null = <results_dir>/benchmark.",
        path="results",
        origin="ours",
    )
    runtimes: list[str] | None = field(
        None, "Runtimes to measure, by the names in the table; null = all.", origin="ours"
    )
    batch_sizes: list[int] = field([1, 8], "Images per step.", min=1, max=4096, origin="ours")
    seconds: float = field(
        5.0, "Time to measure each runtime and batch size, after warm-up.", above=0.0, unit="seconds", origin="ours"
    )
    warmup: int = field(5, "Steps before measuring.", min=0, max=10_000, origin="ours")
    threads: int | None = field(
        None, "Threads of the CPU runtimes; null = one per core.", min=1, max=1024, origin="ours"
    )
    score: bool = field(
        False, "Also score each runtime on dataset.test_data_sources, and plot mAP against latency.", origin="ours"
    )
    decoder_layers: list[int] = field(
        [],
        "Also measure the weights with only the first n decoder layers, for each n (one network with fewer layers).",
        min=1,
        origin="ours",
    )
    num_queries: list[int] = field(
        [],
        "Also measure the weights with n queries, for each n: the encoder then selects fewer.",
        min=1,
        origin="ours",
    )
