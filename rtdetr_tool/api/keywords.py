"""Keyword arguments of the Python API and the fields of the spec that they set."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from rtdetr_tool.errors import UserError
from rtdetr_tool.families import Family, all_families
from rtdetr_tool.families.keywords import Keyword, Rule, Settings
from rtdetr_tool.formats.table import exported_formats
from rtdetr_tool.spec import ExportSpec
from rtdetr_tool.spec.schema import section_type, walk_fields

logger = logging.getLogger(__name__)


def _device(device: Any) -> Settings:
    kind, _, index = str(device).partition(":")
    if kind == "auto":
        return {"train.accelerator": "auto"}
    if (kind == "cpu" and not index) or (kind == "mps" and index in ("", "0")):
        return {"train.accelerator": kind}
    if kind in ("cuda", "gpu") and (not index or index.isdigit()):
        return {"train.accelerator": "gpu", "train.gpu_ids": [int(index or 0)]}
    raise UserError(f"device: {device!r} is invalid; expected 'auto', 'cpu', 'mps', 'cuda' or 'cuda:N'")


def _lr_drop(epoch: Any) -> Settings:
    return {"train.optim.lr_steps": [epoch]}


# Keywords of `train` for every family, next to those of the families and the fields of the spec.
TRAIN: dict[str, Rule] = {
    "lr_drop": _lr_drop,
    "gradient_checkpointing": "train.activation_checkpoint",
    "device": _device,
}
TRAIN_ELSEWHERE = {
    "resolution": "this model has no fixed size; set train_spatial_size, eval_spatial_size, multi_scales"
}
EXPORT_ELSEWHERE = {
    "simplify": "graphs are always simplified",
    "force": "overwrite=True replaces a file",
    "infer_dir": "the comparison uses dataset.infer_data_sources if it is set",
    "patch_size": "it is determined by the model",
}
# Keywords of `export` and the fields that they set in the section of the format, such as `export.openvino`.
EXPORT = {"quantization": "data_type", "max_images": "calibration_images"}
_TRAIN_SECTIONS = ("train", "dataset")


def train_settings(keywords: Mapping[str, Any], family: Family | None = None) -> Settings:
    """Settings from keywords of `train`: `train_keywords`, fields of `train` and `dataset`, or dotted names."""
    of_the_model = _of_the_model()
    fields = {
        name: field
        for name, field in leaves(*_TRAIN_SECTIONS).items()
        if name not in of_the_model or field.rpartition(".")[0] in _TRAIN_SECTIONS
    }  # `num_queries` is a number of the model, not the list of `train.supernet`
    known: dict[str, Rule | Keyword] = {**fields, **train_keywords(family)}
    return settings(keywords, known, "train", {**of_the_model, **ambiguous(*_TRAIN_SECTIONS), **TRAIN_ELSEWHERE})


def train_keywords(family: Family | None = None) -> dict[str, Rule | Keyword]:
    """Keywords of `train` for detectors of a family, including those of other families that set shared fields."""
    known: dict[str, Rule | Keyword] = {}
    for other in all_families():
        is_selected = other is family
        known |= {
            name: row for name, row in other.train_keywords.items() if is_selected or not _names_a_model_field(row)
        }
    sides = () if family is None else family.image_sides
    return {**known, **TRAIN, **{side.rpartition(".")[2]: f"model.{side}" for side in sides}}


def _names_a_model_field(row: Keyword) -> bool:
    return isinstance(row.rule, str) and row.rule.startswith("model.")


def data_settings(keywords: Mapping[str, Any]) -> Settings:
    """Settings from keywords of `evaluate`: `max_dets`, fields of `dataset`, and keywords of `train` that set these."""
    rules = {name: row.rule if isinstance(row, Keyword) else row for name, row in train_keywords().items()}
    prefixes = ("dataset.", "evaluate.")
    known = {name: rule for name, rule in rules.items() if isinstance(rule, str) and rule.startswith(prefixes)}
    return settings(keywords, {**leaves("dataset"), **known, "max_dets": "evaluate.max_dets"}, "evaluate")


def export_settings(keywords: Mapping[str, Any]) -> Settings:
    """Settings from keywords of `export`: fields of `export` and its section for the format, or names in `EXPORT`."""
    section = format_section(keywords)
    fields = leaves("export") if section is None else leaves(section, "export")
    known: dict[str, Rule | Keyword] = {
        name: field for name, field in fields.items() if field.rpartition(".")[0] in (section, "export")
    }
    for keyword, field in EXPORT.items():
        known[keyword] = known.get(field) or _WITHOUT_PRECISION[keyword]
    if "data_type" in known:
        known["quantization"] = lambda kind: {f"{section}.data_type": str(kind or "FP32").upper()}
    return settings(keywords, known, "export", {**ambiguous("export"), **EXPORT_ELSEWHERE})


def format_section(keywords: Mapping[str, Any]) -> str | None:
    """The section with the precision of the format of `export`, such as `export.tflite`; None without one."""
    section = f"export.{str(keywords.get('format', ExportSpec().format)).lower()}"
    return section if any(True for _ in _fields_below(section)) else None


def _fp32_only(kind: Any) -> Settings:
    if str(kind or "fp32").lower() != "fp32":
        others = ", ".join(row.name for row in exported_formats() if len(row.precisions) > 1)
        raise UserError(
            f"export: quantization={kind!r} is invalid for this format, which is written in FP32; choose another one "
            f"({others}), or lower the precision of the ONNX file with `rtdetr quantize`"
        )
    return {}


_WITHOUT_PRECISION: dict[str, Rule | Keyword] = {
    "quantization": _fp32_only,
    "max_images": Keyword("max_images", 100, "warned", note="this format is not calibrated"),
}


def model_settings(keywords: Mapping[str, Any], family: Family, where: str) -> Settings:
    """Settings from keywords of a constructor: the family's fields of `model`, or dotted names."""
    sections = _sections(family)
    others = tuple(other.section for other in all_families() if other.section not in (None, family.section))
    known: dict[str, Rule | Keyword] = {**leaves(*sections, without=others), **family.model_keywords}
    return settings(keywords, known, where, ambiguous(*sections, without=others))


def settings(
    keywords: Mapping[str, Any],
    known: Mapping[str, Rule | Keyword],
    where: str,
    elsewhere: Mapping[str, str] | None = None,
) -> Settings:
    """The fields that keywords set; `elsewhere` has hints for unknown keywords.

    Raises:
        UserError: a keyword is unknown (the message suggests the nearest ones), or a field is set twice.
    """
    result: Settings = {}
    problems = []
    for name, value in keywords.items():
        rule = known.get(name, name if "." in name else None)
        if rule is None:
            problems.append(f"{where} has no keyword {name}{_hint(name, known, elsewhere or {})}")
            continue
        try:
            fields = _fields_of(name, rule, value, where)
        except UserError as error:
            problems.append(str(error))
            continue
        for field, content in fields.items():
            if field in result:
                problems.append(f"{where}: {field} is set twice, the second time as {name}")
            result[field] = plain(content)
    if problems:
        raise UserError("\n".join(problems))
    return result


def _fields_of(name: str, rule: Rule | Keyword, value: Any, where: str) -> Settings:
    """The fields that a keyword sets; UserError if its value is not supported."""
    if isinstance(rule, Keyword):
        row = rule
        if row.rule is None:
            if value != row.default and row.status == "refused":
                raise UserError(f"{where}: {name}={value!r} is not supported: {row.note}")
            if value != row.default:
                logger.warning("%s: %s=%r has no effect: %s", where, name, value, row.note)
            return {}
        rule = row.rule
    return {rule: value} if isinstance(rule, str) else rule(value)


def _hint(name: str, known: Mapping[str, Rule | Keyword], elsewhere: Mapping[str, str]) -> str:
    if name in elsewhere:
        return f": {elsewhere[name]}"
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else f"; expected one of {', '.join(sorted(known))}"


def _of_the_model() -> dict[str, str]:
    fields = leaves(*(section for family in all_families() for section in _sections(family)))
    return dict.fromkeys(fields, "it belongs to the model; pass it when you create the detector")


def _sections(family: Family) -> tuple[str, ...]:
    """Sections of the family's fields, the one of the family before the shared one."""
    return ("model",) if family.section is None else (f"model.{family.section}", "model")


def plain(value: Any) -> Any:
    """Paths as strings and tuples as lists, recursively."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def applied(data: Mapping[str, Any], changes: Settings) -> dict[str, Any]:
    """A copy of nested plain data with fields set by dotted name."""
    result = _copied(data)
    for name, value in changes.items():
        *path, leaf = name.split(".")
        place = result
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = value
    return result


def _copied(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in data.items()}


@cache
def leaves(*sections: str, without: tuple[str, ...] = ()) -> dict[str, str]:
    """Last part of a field's name -> dotted name, for the fields in the sections; the first section's wins.

    A field of the section itself precedes those further down (`train.seed` before another seed). Names that several
    fields further down have are missing; see `ambiguous`.
    """
    return {name: fields[0] for name, fields in _named(sections, without).items() if len(fields) == 1}


@cache
def ambiguous(*sections: str, without: tuple[str, ...] = ()) -> dict[str, str]:
    """Last parts of names that several fields have, with a hint that lists them."""
    return {
        name: f"several fields have this name; use a full name: {', '.join(fields)}"
        for name, fields in _named(sections, without).items()
        if len(fields) > 1
    }


def _named(sections: tuple[str, ...], without: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for section in sections:
        here: dict[str, list[str]] = {}
        skipped = tuple(f"{section}.{name}." for name in without)
        for field in _fields_below(section):
            if not field.startswith(skipped):
                here.setdefault(field.rpartition(".")[2], []).append(field)
        for name, fields in here.items():
            found.setdefault(name, [f"{section}.{name}"] if f"{section}.{name}" in fields else fields)
    return found


def _fields_below(section: str) -> Iterator[str]:
    for name, _, hint in walk_fields():
        if name.startswith(f"{section}.") and not section_type(hint) and "[]" not in name:
            yield name
