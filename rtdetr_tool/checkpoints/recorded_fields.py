"""Spec fields that every file records, because they decide how images are preprocessed and what the outputs mean.

Checkpoints record the whole spec; ONNX files, TFLite files and engines record the `model` section and the `dataset`
fields listed here. A recorded value applies unless the user sets another. Another value is an error if it makes the
outputs wrong or has no effect, and a warning if the weights can run with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rtdetr_tool.families import all_families

REFUSED, WARNED = "refused", "warned"
ELSEWHERE = "elsewhere"  # compared by `runtimes.settle`: sizes with those of commands, class ids with the classes


class RecordedField(NamedTuple):
    """A field, what it decides, and what happens if the user sets another value than the recorded one."""

    field: str
    decides: str
    weights: str = REFUSED  # for a weights file
    graph: str = REFUSED  # for an ONNX file, a TFLite file or an engine, in which most settings are fixed
    only_fewer: bool = False  # a larger number has no effect


RECORDED_FIELDS = (
    RecordedField(
        "dataset.augmentation.preserve_aspect_ratio", "whether images are padded (true) or stretched (false)"
    ),
    RecordedField("dataset.augmentation.eval_spatial_size", "the input size", ELSEWHERE, ELSEWHERE),
    RecordedField("dataset.num_classes", "the number of class scores"),
    RecordedField("dataset.class_ids", "which category each class index means", ELSEWHERE, ELSEWHERE),
    RecordedField("dataset.remap_mscoco_category", "which category each class index means"),
    RecordedField("model.num_select", "how many detections are kept per image", WARNED, WARNED, only_fewer=True),
    *(
        RecordedField(f"model.{family.query_field}", "how many objects can be detected per image", WARNED, REFUSED)
        for family in all_families()
    ),
    RecordedField("model.eval_idx", "which decoder layer predicts", WARNED, REFUSED),
)


def names_in(section: str, policy: str | None = None) -> tuple[str, ...]:
    """Names of the recorded fields directly in a section, only those with this policy for weights if one is given."""
    split = [(*row.field.rpartition("."), row.weights) for row in RECORDED_FIELDS]
    return tuple(name for parent, _, name, weights in split if parent == section and policy in (None, weights))


def other_values(
    explicit: Mapping[str, Any], meta: Mapping[str, Any], graph: bool, policy: str
) -> Iterator[tuple[RecordedField, Any, Any]]:
    """(row, the user's value, recorded value) of the fields with this policy in which both differ."""
    for row in RECORDED_FIELDS:
        given, stored = value_at(explicit, row.field), value_at(meta.get("spec") or {}, row.field)
        if given is None or stored is None or (row.graph if graph else row.weights) != policy:
            continue
        if given < stored if row.only_fewer else given != stored:
            yield row, given, stored


def value_at(data: Any, name: str) -> Any:
    """The value at a dotted name of nested plain data; None if there is none."""
    for part in name.split("."):
        data = data.get(part) if isinstance(data, Mapping) else None
    return data
