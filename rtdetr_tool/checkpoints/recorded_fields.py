"""Spec fields that every file records, because they decide how images are preprocessed and what the outputs mean.

Checkpoints record the whole spec; ONNX files, TFLite files and engines record the `model` section and the `dataset`
fields that are declared with `recorded`. A recorded value applies unless the user sets another. Another value is an
error if it makes the outputs wrong or has no effect, and a warning if the weights can run with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from rtdetr_tool.spec.fields import Reaction, Recorded
from rtdetr_tool.spec.queries import recorded_fields

REFUSED, WARNED, ELSEWHERE = get_args(Reaction)  # reactions to another value than the recorded one


def names_in(section: str, reaction: str | None = None) -> tuple[str, ...]:
    """Names of the recorded fields directly in a section, of those with this reaction for weights if one is given."""
    split = [(*name.rpartition("."), rule.weights) for name, rule in recorded_fields().items()]
    return tuple(name for place, _, name, weights in split if place == section and reaction in (None, weights))


def other_values(
    explicit: Mapping[str, Any], meta: Mapping[str, Any], graph: bool, reaction: str
) -> Iterator[tuple[str, Recorded, Any, Any]]:
    """(field, rule, given value, recorded value) of the fields with this reaction that the user gave another value."""
    for name, rule in recorded_fields().items():
        given, stored = value_at(explicit, name), value_at(meta.get("spec") or {}, name)
        if given is None or stored is None or (rule.graph if graph else rule.weights) != reaction:
            continue
        if given < stored if rule.only_fewer else given != stored:
            yield name, rule, given, stored


def value_at(data: Any, name: str) -> Any:
    """The value at a dotted name of nested plain data, None where there is none."""
    for part in name.split("."):
        data = data.get(part) if isinstance(data, Mapping) else None
    return data
