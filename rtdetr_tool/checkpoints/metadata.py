"""What a checkpoint of ours says about itself, and whether a spec agrees with it.

`rtdetr_tool: {version, spec, classes, weights, metrics}`, plain types only: `spec` as `spec_to_dict` gives it,
`classes` as `ClassMap.to_list` gives it, `weights` is `raw` or `ema`, `metrics` the validation results of that
moment by name.
"""

from __future__ import annotations

import dataclasses
import operator
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
    "dec_hidden_dim",
    "dec_dim_feedforward",
    "num_points",
    "cross_attn_method",
    "offset_scale",
)
CHECKED = (("model", ARCHITECTURE), ("model.frozen_fm", ("enabled", "backbone")), ("dataset", ("num_classes",)))


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


def check_against(
    spec: Any,
    meta: Mapping[str, Any],
    *,
    source: str,
    explicit: Mapping[str, Any] | None = None,
    every_field: bool = False,
) -> None:
    """CheckpointError naming both values where `spec` contradicts the checkpoint.

    `spec` is an `ExperimentSpec` (any dataclass with `.model` and `.dataset.num_classes`). A field that the user did
    not give is not a contradiction, because a spec may name only data and checkpoint: `explicit` holds what was given
    (`LoadedSpec.explicit`); without it, what is not the schema's default counts as given. `every_field` (resuming)
    compares all.
    """
    problems = []
    for section, names in CHECKED:
        stored_section = _nested(meta.get("spec"), section)
        own = operator.attrgetter(section)(spec)
        for name in names:
            if name not in stored_section:
                continue
            given, stored = _plain(getattr(own, name)), _plain(stored_section[name])
            was_given = given != _default(own, name) if explicit is None else name in _nested(explicit, section)
            if given != stored and (every_field or was_given):
                problems.append(f"{section}.{name} is {given!r} in the spec, {stored!r} in the checkpoint")
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise CheckpointError(f"The spec and {source} contradict each other:\n{lines}")


def _nested(mapping: Mapping[str, Any] | None, path: str) -> Mapping[str, Any]:
    """The mapping at a dotted name, empty where there is none."""
    for name in path.split("."):
        mapping = (mapping or {}).get(name)
    return mapping or {}


def differences(spec: Any, meta: Mapping[str, Any]) -> list[str]:
    """The fields of the architecture, in words, in which a spec and a checkpoint differ, given or not."""
    stored = _flat(meta.get("spec", {}).get("model") or {})
    return [
        f"model.{name} {_value(spec.model, name)!r} in the spec, {_plain(stored[name])!r} in the checkpoint"
        for name in ARCHITECTURE
        if name in stored and _value(spec.model, name) != _plain(stored[name])
    ]


def _flat(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section with the fields of sections inside it by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in section.items():
        inner = value if isinstance(value, Mapping) else {}
        flat |= {f"{name}.{field}": item for field, item in inner.items()} or {name: value}
    return flat


def _value(section: Any, name: str) -> Any:
    for part in name.split("."):
        section = getattr(section, part)
    return _plain(section)


def _default(section: Any, name: str) -> Any:
    outer, _, inner = name.rpartition(".")
    if outer:
        return _default(getattr(section, outer), inner)
    for entry in dataclasses.fields(section):
        if entry.name == name:
            if entry.default is not dataclasses.MISSING:
                return _plain(entry.default)
            if entry.default_factory is not dataclasses.MISSING:
                return _plain(entry.default_factory())
    return None


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
