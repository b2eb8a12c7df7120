"""The `automl` section: search for the best values of other fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rtdetr_tool.formats.table import exported_formats
from rtdetr_tool.spec.fields import field
from rtdetr_tool.spec.slurm import SlurmSpec

SAMPLERS = ("tpe", "gp", "random", "grid")
PRUNERS = ("auto", "none", "asha", "hyperband", "median")
PARETO = "pareto"
# Fields that only apply to trials.
OF_TRIALS = (
    "fields", "parameters", "trials", "sampler", "pruner", "pruning_start", "seed", "objective", "storage",
    "study_name", "workers", "slurm.jobs",
)  # fmt: skip


@dataclass(frozen=True)
class AutomlSpec:
    """Search for the values of other fields with the best validation score."""

    results_dir: str | None = field(
        None,
        "Folder of this command's results, with a folder per trial; null = <results_dir>/automl.",
        path="results",
        origin="ours",
    )
    supernet_checkpoint: str | None = field(
        None,
        "Weights trained with train.supernet: instead of training trials, score each of their sub-detectors, measure "
        "its latency, and write a spec for each point of the Pareto front. If train.supernet is enabled in this spec, "
        "its choices, otherwise all that the weights were trained with.",
        path="read",
        origin="ours",
    )
    fields: list[str] | None = field(
        None,
        "Fields to search; null = those that TAO marks automl_enabled and that can change the score of this spec.",
        origin="ours",
    )
    parameters: dict[str, Any] = field(
        {},
        "Ranges by field, which are searched in addition to fields: {min: 1e-5, max: 1e-3, log: true}, "
        "{min: 100, max: 300, step: 100}, {choices: [2, 3, 4]}; null = do not search this field.",
        origin="ours",
    )
    trials: int = field(20, "Number of trials, including pruned and failed ones.", min=1, max=100_000, origin="ours")
    sampler: str = field(
        "tpe",
        "How the values of a trial are chosen: tpe (tree-structured Parzen estimator), gp (Gaussian process), random, "
        "or grid (all combinations).",
        options=SAMPLERS,
        origin="ours",
    )
    pruner: str = field(
        "auto",
        "How unpromising trials are ended at a validation: asha (successive halving), hyperband, median, or none; "
        "auto = asha, or none with two objectives.",
        options=PRUNERS,
        origin="ours",
    )
    pruning_start: int = field(
        1, "The first validation at which a trial can be pruned.", min=1, max=10_000, origin="ours"
    )
    seed: int = field(1234, "Seed of the sampler; trials use train.seed.", min=0, max=2**31 - 1, origin="ours")
    objective: str = field(
        "map",
        "map = the best train.best_metric on the validation data; pareto = that and latency, as a Pareto front.",
        options=("map", PARETO),
        origin="ours",
    )
    max_latency: float | None = field(
        None,
        "Latency that the best trial must not exceed; implies pareto.",
        above=0.0,
        unit="milliseconds per image",
        origin="ours",
    )
    latency_runtime: str = field(
        "torch",
        "Runtime in which latency is measured, by its name in `rtdetr benchmark`.",
        options=("torch eager", "torch", "torch bf16", *(row.name for row in exported_formats())),
        origin="ours",
    )
    storage: str | None = field(
        None,
        "Where trials are stored, as a URL: postgresql://user:password@host/database, or journal:///shared/file for a "
        "file on a shared file system; null = study.db (SQLite) in the results folder, or study.journal with "
        "slurm.jobs.",
        origin="ours",
    )
    study_name: str = field("automl", "Name of the search in the database.", origin="ours")
    workers: int | None = field(
        None, "Trials that run at the same time, as processes; null = one per GPU.", min=1, max=1024, origin="ours"
    )
    slurm: SlurmSpec = field(SlurmSpec, "Workers as jobs of a SLURM cluster.")

    @property
    def has_trials(self) -> bool:
        """Whether detectors are trained; otherwise the sub-detectors of existing weights are scored."""
        return not self.supernet_checkpoint

    @property
    def has_latency(self) -> bool:
        """Whether latency is the second objective."""
        return self.objective == PARETO or self.max_latency is not None or self.supernet_checkpoint is not None

    @property
    def effective_pruner(self) -> str:
        if self.pruner != "auto":
            return self.pruner
        return "none" if self.has_latency else "asha"
