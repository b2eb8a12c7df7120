"""The metadata in our checkpoints, and its comparison with a spec.

`rtdetr_tool: {version, spec, classes, weights, metrics}` with plain types only: `spec` is the result of
`spec_to_dict`, `classes` of `ClassMap.to_list`, `weights` is `raw` or `ema`, and `metrics` has the validation results
at the time of saving by name.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from rtdetr_tool.checkpoints.limits import check_metadata_values, stored_numbers
from rtdetr_tool.checkpoints.recorded_fields import REFUSED, names_in
from rtdetr_tool.checkpoints.sub_detectors import is_possible, trained_note
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families import all_families, family_of
from rtdetr_tool.redaction import without_secrets
from rtdetr_tool.spec.fields import SizeKind
from rtdetr_tool.spec.queries import architecture_sections, path_fields, size_fields, unlimited_fields

if TYPE_CHECKING:
    from torch import Tensor

KEY = "rtdetr_tool"
FORMAT = 1

LARGEST_NUMBER = 65_536  # in the model section: widths, layers, queries, points; not coefficients and temperatures
LARGEST_SIDE = 4_096  # pixels of eval_spatial_size in a file; a spec may have more
# What to do about a contradiction when a file is used, not trained further.
ADVICE = (
    "Remove these fields from the spec to use the file's values, or train or export it again with other values "
    "(train.pretrained_model_path starts a run from its weights)."
)


def build_metadata(
    version: str,
    spec: Mapping[str, Any],
    classes: Sequence[Mapping[str, Any]],
    weights: str = "raw",
    metrics: Mapping[str, float | None] | None = None,
) -> dict[str, Any]:
    """Plain data for the key `rtdetr_tool` of a checkpoint, without secrets of the spec and undefined metrics."""
    return {
        "version": str(version),
        "format": FORMAT,
        "spec": without_secrets(spec),
        "classes": [dict(entry) for entry in classes],
        "weights": weights,
        "metrics": {name: float(value) for name, value in (metrics or {}).items() if value is not None},
    }


def checked_metadata(meta: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Metadata of a file after a check of its structure; CheckpointError if it is malformed."""
    check_metadata_values(dict(meta), source)
    spec, classes = meta.get("spec") or {}, meta.get("classes")
    sections = [spec]
    for path in _compared_fields():
        if all(isinstance(section, Mapping) for section in sections):
            sections.append(section_of(spec, path))
    entries = classes if isinstance(classes, (list, tuple)) else [classes]
    if not all(isinstance(part, Mapping) for part in (*sections, *entries)):
        raise CheckpointError(f"{source} has malformed {KEY!r} metadata; the file may be corrupted.")
    return dict(meta)


def check_sizes(meta: Mapping[str, Any], weights: Mapping[str, Tensor], source: str) -> None:
    """CheckpointError if the metadata describes a network far larger than the tensors, too large to be built."""
    family = family_of(section_of(meta, "spec.model").get("arch"))
    numbers = {kind: list(_numbers(meta, size_fields(family.name, kind))) for kind in get_args(SizeKind)}
    layers, width = (max(numbers[kind], default=1) for kind in ("depth", "width"))
    other_width = max([1, *numbers["breadth"], *_numbers(meta, ["dataset.num_classes"])])
    inner = width * max([1, *numbers["factor"]])
    elements = stored_numbers(weights)
    _check_numbers(meta, source)
    needed = max(layers * width * width, other_width * width, inner * inner, sum(numbers["total"]) * width)
    if layers > len(weights) or needed > elements:
        raise CheckpointError(
            f"The metadata of {source} describes a network with {layers} layers of width {width}, which does not match "
            f"its {len(weights)} tensors of {elements} elements; the file is corrupted or forged."
        )


def _check_numbers(meta: Mapping[str, Any], source: str) -> None:
    """CheckpointError for numbers that no model has, also where no tensor depends on them (queries, image sizes)."""
    model = section_of(meta, "spec.model")
    names = [f"model.{name}" for name in model]
    sides = ["dataset.augmentation.eval_spatial_size"]
    for family in all_families():
        if family.section is not None:
            inner = section_of(model, family.section)
            names += [f"model.{family.section}.{name}" for name in inner]
        sides += [f"model.{name}" for name in family.image_sides]
    limited = [name for name in names if name not in unlimited_fields()]
    limits = {**dict.fromkeys(limited, LARGEST_NUMBER), **dict.fromkeys(sides, LARGEST_SIDE)}
    for name, limit in limits.items():
        for number in _numbers(meta, [name]):
            if not abs(number) <= limit:
                raise CheckpointError(
                    f"The metadata of {source} has {name} {number:g}; expected at most {limit}. The file is corrupted "
                    "or forged."
                )


def _numbers(meta: Mapping[str, Any], names: Sequence[str]) -> Iterator[float]:
    for name in names:
        section, _, field = f"spec.{name}".rpartition(".")
        value = section_of(meta, section).get(field)
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, (int, float)):
                yield number


def without_paths(model: Mapping[str, Any]) -> dict[str, Any]:
    """A file's `model` section without paths, which are only opened when the user gives them."""
    return _without_paths(model, "model")


def _without_paths(section: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    paths = path_fields("model")
    return {
        name: _without_paths(value, f"{prefix}.{name}") if isinstance(value, Mapping) else value
        for name, value in section.items()
        if f"{prefix}.{name}" not in paths
    }


def check_against(
    spec: Any,
    meta: Mapping[str, Any],
    *,
    source: str,
    explicit: Mapping[str, Any] | None = None,
    every_field: bool = False,
    sub_detectors: bool = False,
    advice: str = ADVICE,
) -> None:
    """CheckpointError with both values of each field in which `spec` contradicts the checkpoint.

    Args:
        spec: an `ExperimentSpec`, or any dataclass with `.model` and `.dataset.num_classes`.
        explicit: the fields that the user set (`LoadedSpec.explicit`); only these can contradict the checkpoint.
            Without it, all values other than the schema's defaults count as set.
        every_field: compare all fields, for resuming.
        sub_detectors: the spec may ask for a sub-detector of the weights.
        advice: the end of the message.
    """
    problems = []
    for section, name, given, stored in _compared(spec, meta):
        values = operator.attrgetter(section)(spec)
        was_given = given != _default(values, name) if explicit is None else name in section_of(explicit, section)
        if given == stored or not (every_field or was_given):
            continue
        if not (sub_detectors and is_possible(f"{section}.{name}", given, meta)):
            note = trained_note(f"{section}.{name}", meta) if sub_detectors else ""
            problems.append(f"{section}.{name} is {given!r} in the spec, but {stored!r} in the checkpoint{note}")
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise CheckpointError(f"The spec does not match {source}:\n{lines}\n{advice}".rstrip())


def differences(spec: Any, meta: Mapping[str, Any], ignored: Sequence[str] = ()) -> list[str]:
    """The fields of architecture and preprocessing in which a spec and a checkpoint differ, whether set or default."""
    return [
        f"{section}.{name} is {given!r} in the spec, but {stored!r} in the checkpoint"
        for section, name, given, stored in _compared(spec, meta)
        if section != "dataset" and given != stored and name not in ignored  # a new run may have other classes
    ]


def _compared(spec: Any, meta: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    """(section, field, value in the spec, value in the checkpoint) of the fields that both have."""
    for section, names in _compared_fields().items():
        stored_section = section_of(meta.get("spec"), section)
        values = operator.attrgetter(section)(spec)
        for name in names:
            undecided = name == "num_classes" and values.num_classes is None  # taken from the file or the dataset
            if name in stored_section and not undecided:
                yield section, name, _plain(getattr(values, name)), _plain(stored_section[name])


def _compared_fields() -> dict[str, tuple[str, ...]]:
    """Section of the spec -> fields in which a spec and a checkpoint must agree."""
    recorded = {section: names_in(section, REFUSED) for section in ("dataset", "dataset.augmentation")}
    return {**dict(architecture_sections()), **recorded}


def section_of(mapping: Mapping[str, Any] | None, path: str) -> Mapping[str, Any]:
    """The mapping at a dotted name; empty if there is none."""
    for name in path.split("."):
        mapping = (mapping or {}).get(name)
    return mapping or {}


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
