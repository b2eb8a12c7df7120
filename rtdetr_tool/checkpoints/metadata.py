"""What a checkpoint of ours says about itself, and whether a spec agrees with it.

`rtdetr_tool: {version, spec, classes, weights, metrics}`, plain types only: `spec` as `spec_to_dict` gives it,
`classes` as `ClassMap.to_list` gives it, `weights` is `raw` or `ema`, `metrics` the validation results of that
moment by name.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from rtdetr_tool.checkpoints.limits import check_metadata_values, stored_numbers
from rtdetr_tool.checkpoints.recorded import REFUSED, names_in
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families import all_families, family_of
from rtdetr_tool.redaction import without_secrets
from rtdetr_tool.spec.fields import SizeKind
from rtdetr_tool.spec.queries import architecture_sections, path_fields, size_fields

if TYPE_CHECKING:
    from torch import Tensor

KEY = "rtdetr_tool"
FORMAT = 1

LARGEST_NUMBER = 65_536  # of the model section: widths, layers, queries, points; losses and temperatures apart
LARGEST_SIDE = 4_096  # pixels of eval_spatial_size that a file may ask for; a spec may ask for more
_UNBOUNDED = ("pe_temperature", "offset_scale")  # numbers that make nothing larger
# What to do about a contradiction, where a file is only used.
ADVICE = (
    "Leave these fields out of the spec and what the file records applies; for other values, train or export it again "
    "(train.pretrained_model_path starts a run from its weights)."
)


def build_metadata(
    version: str,
    spec: Mapping[str, Any],
    classes: Sequence[Mapping[str, Any]],
    weights: str = "raw",
    metrics: Mapping[str, float | None] | None = None,
) -> dict[str, Any]:
    """Plain data for the key `rtdetr_tool` of a checkpoint.

    Secrets that the spec may hold and metrics that are undefined are left out.
    """
    return {
        "version": str(version),
        "format": FORMAT,
        "spec": without_secrets(spec),
        "classes": [dict(entry) for entry in classes],
        "weights": weights,
        "metrics": {name: float(value) for name, value in (metrics or {}).items() if value is not None},
    }


def checked_metadata(meta: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Metadata of a file as a dictionary of the form at the top; CheckpointError where somebody else made it up."""
    check_metadata_values(dict(meta), source)
    spec, classes = meta.get("spec") or {}, meta.get("classes")
    sections = [spec]
    for path in _compared_fields():
        if all(isinstance(section, Mapping) for section in sections):
            sections.append(section_of(spec, path))
    sound = all(isinstance(section, Mapping) for section in sections) and isinstance(classes, (list, tuple))
    sound = sound and all(isinstance(entry, Mapping) for entry in classes)
    if not sound:
        raise CheckpointError(f"{source} says something of itself in {KEY!r} that this tool does not write: damaged?")
    return dict(meta)


def check_sizes(meta: Mapping[str, Any], weights: Mapping[str, Tensor], source: str) -> None:
    """CheckpointError for a file that describes a network far too large for its tensors: building it may never end."""
    family = family_of(section_of(meta, "spec.model").get("arch"))
    sizes = [size_fields(family.name, kind) for kind in get_args(SizeKind)]
    layers, width, beside = (max(_numbers(meta, names), default=1) for names in sizes)
    beside = max(beside, *_numbers(meta, ["dataset.num_classes"]), 1)
    inner = width * max(1, *_numbers(meta, ["model.expansion"]), 1)
    elements = stored_numbers(weights)
    _check_numbers(meta, source)
    points = sum(_numbers(meta, ["model.num_points"]))
    needed = max(layers * width * width, beside * width, inner * inner, points * width)
    if layers > len(weights) or needed > elements:
        raise CheckpointError(
            f"{source} describes a network of {layers} layers, {width} wide, which its {len(weights)} tensors with "
            f"{elements} numbers cannot be: damaged, or made up."
        )


def _check_numbers(meta: Mapping[str, Any], source: str) -> None:
    """CheckpointError for numbers that no model has; what they size may not be among the tensors (queries, images)."""
    model = section_of(meta, "spec.model")
    names = [f"model.{name}" for name in model if name not in _UNBOUNDED and not name.endswith(("_coef", "_cost"))]
    sides = ["dataset.augmentation.eval_spatial_size"]
    for family in all_families():
        if family.section is not None:
            inner = section_of(model, family.section)
            names += [f"model.{family.section}.{name}" for name in inner if not name.endswith("_coef")]
        sides += [f"model.{name}" for name in family.image_sides]
    limits = {**dict.fromkeys(names, LARGEST_NUMBER), **dict.fromkeys(sides, LARGEST_SIDE)}
    for name, limit in limits.items():
        for number in _numbers(meta, [name]):
            if not abs(number) <= limit:
                raise CheckpointError(
                    f"{source} describes a network of {name} {number:g}, and at most {limit} is accepted: damaged, or "
                    "made up."
                )


def _numbers(meta: Mapping[str, Any], names: Sequence[str]) -> Iterator[float]:
    for name in names:
        section, _, field = f"spec.{name}".rpartition(".")
        value = section_of(meta, section).get(field)
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, (int, float)):
                yield number


def without_paths(model: Mapping[str, Any]) -> dict[str, Any]:
    """A file's `model` section as others may use it: what it names on a disk is opened only when the user says so."""
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
    advice: str = ADVICE,
) -> None:
    """CheckpointError naming both values where `spec` contradicts the checkpoint.

    `spec` is an `ExperimentSpec` (any dataclass with `.model` and `.dataset.num_classes`). A field that the user did
    not give is not a contradiction, because a spec may name only data and checkpoint: `explicit` holds what was given
    (`LoadedSpec.explicit`); without it, what is not the schema's default counts as given. `every_field` (resuming)
    compares all. The message ends with `advice`.
    """
    problems = []
    for section, name, given, stored in _compared(spec, meta):
        own = operator.attrgetter(section)(spec)
        was_given = given != _default(own, name) if explicit is None else name in section_of(explicit, section)
        if given != stored and (every_field or was_given):
            problems.append(f"{section}.{name} is {given!r} in the spec, {stored!r} in the checkpoint")
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise CheckpointError(f"The spec and {source} contradict each other:\n{lines}\n{advice}".rstrip())


def differences(spec: Any, meta: Mapping[str, Any], ignored: Sequence[str] = ()) -> list[str]:
    """The fields of the architecture and the preprocessing in which a spec and a checkpoint differ, given or not."""
    return [
        f"{section}.{name} is {given!r} in the spec, {stored!r} in the checkpoint"
        for section, name, given, stored in _compared(spec, meta)
        if section != "dataset" and given != stored and name not in ignored  # the classes of a new run may be others
    ]


def _compared(spec: Any, meta: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    """(section, field, value in the spec, value in the checkpoint) of what both have."""
    for section, names in _compared_fields().items():
        stored_section = section_of(meta.get("spec"), section)
        own = operator.attrgetter(section)(spec)
        for name in names:
            open_number = name == "num_classes" and own.num_classes is None  # left to the file or the data
            if name in stored_section and not open_number:
                yield section, name, _plain(getattr(own, name)), _plain(stored_section[name])


def _compared_fields() -> dict[str, tuple[str, ...]]:
    """Section of the spec -> the fields in which a spec and a checkpoint must agree."""
    recorded = {section: names_in(section, REFUSED) for section in ("dataset", "dataset.augmentation")}
    return {**dict(architecture_sections()), **recorded}


def section_of(mapping: Mapping[str, Any] | None, path: str) -> Mapping[str, Any]:
    """The mapping at a dotted name, empty where there is none."""
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
