"""What a checkpoint of ours says about itself, and whether a spec agrees with it.

`rtdetr_tool: {version, spec, classes, weights, metrics}`, plain types only: `spec` as `spec_to_dict` gives it,
`classes` as `ClassMap.to_list` gives it, `weights` is `raw` or `ema`, `metrics` the validation results of that
moment by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rtdetr_tool.errors import CheckpointError

KEY = "rtdetr_tool"
FORMAT = 1

# Fields of `model` that change what the weights mean; the others (losses, top-k, queries, dropout) may differ freely.
ARCHITECTURE = (
    "backbone",
    "num_feature_levels",
    "return_interm_indices",
    "feat_strides",
    "feat_channels",
    "use_encoder_idx",
    "hidden_dim",
    "nheads",
    "enc_layers",
    "dim_feedforward",
    "pe_temperature",
    "expansion",
    "depth_mult",
    "enc_act",
    "act",
    "dec_layers",
)


def build_metadata(
    version: str,
    spec: Mapping[str, Any],
    classes: Sequence[Mapping[str, Any]],
    weights: str = "raw",
    metrics: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Plain data for the key `rtdetr_tool` of a checkpoint."""
    return {
        "version": str(version),
        "format": FORMAT,
        "spec": dict(spec),
        "classes": [dict(entry) for entry in classes],
        "weights": weights,
        "metrics": {name: float(value) for name, value in (metrics or {}).items()},
    }


def check_against(spec: Any, meta: Mapping[str, Any], *, source: str, every_field: bool = False) -> None:
    """CheckpointError naming both values where `spec` contradicts the checkpoint.

    `spec` is an `ExperimentSpec` (any dataclass with `.model` and `.dataset.num_classes`). A field left at its schema
    default is not a contradiction, because a spec may name only data and checkpoint; `every_field` (resuming) compares
    those too.
    """
    problems = []
    stored_model = meta.get("spec", {}).get("model", {})
    for name in ARCHITECTURE:
        if name not in stored_model or not hasattr(spec.model, name):
            continue
        given, stored = _plain(getattr(spec.model, name)), _plain(stored_model[name])
        if given != stored and (every_field or given != _default(spec.model, name)):
            problems.append(f"model.{name} is {given!r} in the spec, {stored!r} in the checkpoint")
    stored_dataset = meta.get("spec", {}).get("dataset", {})
    if "num_classes" in stored_dataset:
        given, stored = spec.dataset.num_classes, stored_dataset["num_classes"]
        if given != stored and (every_field or given != _default(spec.dataset, "num_classes")):
            problems.append(f"dataset.num_classes is {given!r} in the spec, {stored!r} in the checkpoint")
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise CheckpointError(f"The spec and {source} contradict each other:\n{lines}")


def _default(section: Any, name: str) -> Any:
    for entry in dataclasses.fields(section):
        if entry.name == name:
            if entry.default is not dataclasses.MISSING:
                return _plain(entry.default)
            if entry.default_factory is not dataclasses.MISSING:
                return _plain(entry.default_factory())
    return None


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
