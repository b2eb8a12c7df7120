"""What every file records about how its detector sees images and what its outputs mean.

Checkpoints record the whole spec; ONNX files, TFLite files and engines keep the `model` section and the `dataset`
fields listed here. A recorded value holds wherever the user gives none. Another value is refused where it would make
the outputs wrong or could have no effect, and warned about where the weights can run with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rtdetr_tool.families import all_families

REFUSED, WARNED = "refused", "warned"
ELSEWHERE = "elsewhere"  # compared by `runtimes.settle`: sizes with those of commands, numberings with the classes


class Recorded(NamedTuple):
    """A field and what becomes of another value than the recorded one."""

    field: str
    decides: str
    weights: str = REFUSED  # for a weights file
    graph: str = REFUSED  # for an ONNX file, a TFLite file or an engine, which has most of its settings built in
    only_fewer: bool = False  # a larger number changes nothing


RECORDED = (
    Recorded("dataset.augmentation.preserve_aspect_ratio", "whether images are padded (true) or stretched (false)"),
    Recorded("dataset.augmentation.eval_spatial_size", "the input size", ELSEWHERE, ELSEWHERE),
    Recorded("dataset.num_classes", "the number of class scores"),
    Recorded("dataset.class_ids", "which class index stands for which category", ELSEWHERE, ELSEWHERE),
    Recorded("dataset.remap_mscoco_category", "which class index stands for which category"),
    Recorded("model.num_select", "how many detections are kept per image", WARNED, WARNED, only_fewer=True),
    *(
        Recorded(f"model.{family.query_field}", "how many objects can be found in an image", WARNED, REFUSED)
        for family in all_families()
    ),
    Recorded("model.eval_idx", "which decoder layer predicts", WARNED, REFUSED),
)


def names_in(section: str, policy: str | None = None) -> tuple[str, ...]:
    """Names of the recorded fields directly in a section, of those with this policy for weights if one is given."""
    split = [(*row.field.rpartition("."), row.weights) for row in RECORDED]
    return tuple(name for place, _, name, weights in split if place == section and policy in (None, weights))


def other_values(
    explicit: Mapping[str, Any], meta: Mapping[str, Any], graph: bool, policy: str
) -> Iterator[tuple[Recorded, Any, Any]]:
    """(row, given value, recorded value) of the fields with this policy that the user gave another value."""
    for row in RECORDED:
        given, stored = value_at(explicit, row.field), value_at(meta.get("spec") or {}, row.field)
        if given is None or stored is None or (row.graph if graph else row.weights) != policy:
            continue
        if given < stored if row.only_fewer else given != stored:
            yield row, given, stored


def value_at(data: Any, name: str) -> Any:
    """The value at a dotted name of nested plain data, None where there is none."""
    for part in name.split("."):
        data = data.get(part) if isinstance(data, Mapping) else None
    return data
