"""Load a spec file with command-line overrides as a checked `ExperimentSpec`; the only module that uses Hydra."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from rtdetr_tool.errors import SpecError
from rtdetr_tool.messages import first_line
from rtdetr_tool.redaction import remember_secrets
from rtdetr_tool.spec.augmentation_policy import with_policy
from rtdetr_tool.spec.commands import WITH_SPEC
from rtdetr_tool.spec.convert import from_plain, spec_to_dict, suggestion
from rtdetr_tool.spec.documents import read_file, unusual
from rtdetr_tool.spec.experiment import ExperimentSpec
from rtdetr_tool.spec.fields import is_blank
from rtdetr_tool.spec.preset import overridden_note, with_preset
from rtdetr_tool.spec.recipe import epochs_of, with_recipe
from rtdetr_tool.spec.references import resolve
from rtdetr_tool.spec.schema import field_names, walk_fields
from rtdetr_tool.spec.sizes import with_sizes
from rtdetr_tool.spec.sources import with_sources
from rtdetr_tool.spec.tables import FIELD_ALIASES
from rtdetr_tool.spec.validate import find_problems, inert_notes

LONGEST_OVERRIDES = 20_000  # characters; the time of Hydra's parser grows quadratically
MOST_PARTS = 1_000  # items of lists and mappings
# A value outside of Hydra's grammar (which is ASCII with few special characters) that can only be meant as text.
_PLAIN_TEXT = re.compile(r"([^=]+)=(?=.*[^\w\s./:+%@?|*-]|.*[^\x00-\x7f])([^=,\[\]{}()'\"\\$\x00-\x1f]+)", re.S)


@dataclass(frozen=True)
class LoadedSpec:
    """A spec, and the values that the user set."""

    spec: ExperimentSpec
    explicit: dict[str, Any] = field(default_factory=dict)  # nested plain data: only the values that the user set
    notes: list[str] = field(default_factory=list)  # one line per accepted field without effect
    source: str | None = None

    def with_value(self, name: str, value: Any) -> LoadedSpec:
        """A copy in which the user has set `value` for the field with this dotted name."""
        return self.with_values({name: value})

    def with_values(self, values: Mapping[str, Any]) -> LoadedSpec:
        """A copy in which the user has set these fields, by dotted names."""
        data, explicit = spec_to_dict(self.spec), copy.deepcopy(self.explicit)
        for name, value in values.items():
            *sections, field = name.split(".")
            inner, given = data, explicit
            for section in sections:
                inner, given = inner[section], given.setdefault(section, {})
            inner[field] = given[field] = value
        return replace(self, spec=spec_from_dict(data), explicit=explicit)


def load_spec(path: str | Path | None, overrides: Sequence[str] = (), command: str | None = None) -> ExperimentSpec:
    """The checked spec of a YAML or JSON file with Hydra overrides; `SpecError` reports all problems at once."""
    return read_spec(path, overrides, command).spec


def spec_from_dict(data: dict[str, Any], command: str | None = None, source: str | None = None) -> ExperimentSpec:
    """The checked spec from plain data, for example from a checkpoint."""
    return _checked(data, [], command, source)


def _checked(data: dict[str, Any], problems: list[str], command: str | None, source: str | None) -> ExperimentSpec:
    """The spec from `data`; `SpecError` with `problems` and those found here."""
    data = with_preset(with_sizes(_with_devices(with_sources(data))))
    spec = from_plain(ExperimentSpec, with_recipe(with_policy(data, epochs_of(data))), problems)
    spec = _with_engine_path(spec, command)
    problems += _not_following(find_problems(spec, command), problems)
    if problems:
        raise SpecError(list(dict.fromkeys(problems)), source)
    return fill_results_dir(spec, command)


def _not_following(later: list[str], earlier: list[str]) -> list[str]:
    """The `later` problems without those about fields with an earlier problem, which have a placeholder value."""
    wrong = tuple(f"{re.split(r'[:[ ]', problem)[0]}." for problem in earlier)

    def follows(line: str) -> bool:
        named = re.findall(r"[a-z_]+(?:\.[a-z_]+)+", line)
        return any(f"{name}.".startswith(wrong) for name in named)

    return [line for line in later if not follows(line)]


def _with_devices(data: dict[str, Any]) -> dict[str, Any]:
    """If a section sets only `num_gpus` or only `gpu_ids`, derive the other one, as TAO does."""
    data = dict(data)
    for name in ("train", "evaluate", "inference"):
        section = data.get(name)
        if not isinstance(section, dict):
            continue
        count, ids = section.get("num_gpus"), section.get("gpu_ids")
        if "gpu_ids" not in section and isinstance(count, int) and 0 < count <= 1024:
            data[name] = {**section, "gpu_ids": list(range(count))}
        elif "num_gpus" not in section and isinstance(ids, list) and ids:
            data[name] = {**section, "num_gpus": len(ids)}
    return data


def read_spec(path: str | Path | None, overrides: Sequence[str] = (), command: str | None = None) -> LoadedSpec:
    """`load_spec`, with the values that the user set and notes on fields without effect."""
    source = None if path is None else str(path)
    given = (override.partition("=") for override in overrides)
    remember_secrets({name: value.strip("'\"") for name, _, value in given})
    data = {} if path is None else read_file(Path(path))
    remember_secrets(data)
    problems: list[str] = []
    composed = _compose(data, overrides, problems)
    plain = resolve(composed, spec_to_dict(ExperimentSpec()), problems)
    if invalid := unusual(plain):
        raise SpecError([*problems, *invalid], source)
    plain = _without_sharing(plain)
    remember_secrets(plain)
    spec = _checked(plain, problems, command, source)
    notes = [*inert_notes(spec), *filter(None, [overridden_note(plain)])]
    return LoadedSpec(spec, plain, notes, source)


def _without_sharing(value: Any) -> Any:
    """A copy without shared parts, so that each can be changed separately."""
    if isinstance(value, dict):
        return {key: _without_sharing(inner) for key, inner in value.items()}
    return [_without_sharing(inner) for inner in value] if isinstance(value, list) else value


def fill_results_dir(spec: ExperimentSpec, command: str | None) -> ExperimentSpec:
    """Set `<command>.results_dir` to `results_dir/<command>` if it is not set."""
    if command not in WITH_SPEC:
        return spec
    section = getattr(spec, command)
    if section is None or section.results_dir:
        return spec
    return replace(spec, **{command: replace(section, results_dir=str(Path(str(spec.results_dir)) / command))})


def _with_engine_path(spec: ExperimentSpec, command: str | None) -> ExperimentSpec:
    """With `trt_engine: null`, the engine is named after the ONNX file, in the results folder; TAO writes it to a
    temporary one."""
    section = spec.gen_trt_engine
    folder = section.results_dir or (spec.results_dir and str(Path(spec.results_dir) / "gen_trt_engine"))
    if command != "gen_trt_engine" or section.trt_engine is not None or is_blank(section.onnx_file) or not folder:
        return spec
    engine = str(Path(folder) / f"{Path(section.onnx_file).stem}.engine")
    return replace(spec, gen_trt_engine=replace(section, trt_engine=engine))


def _compose(data: dict[str, Any], overrides: Sequence[str], problems: list[str]) -> dict[str, Any]:
    """The user's data with the overrides applied by Hydra."""
    from hydra import compose, initialize
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    length, parts = sum(map(len, overrides)), sum(text.count(mark) for text in overrides for mark in ",[{")
    if length > LONGEST_OVERRIDES or parts > MOST_PARTS:
        problems.append(
            f"command line: {length} characters with {parts} items; expected at most {LONGEST_OVERRIDES} and "
            f"{MOST_PARTS}. Write long values into the spec file"
        )
        return data
    accepted = [text for text in (_accepted(override, problems) for override in overrides) if text]
    if not accepted:
        return data
    # These are not fields of a spec, but Hydra would interpret them.
    special: dict[str, Any] = {key: data[key] for key in ("defaults", "hydra") if key in data}
    node = _canonical({key: value for key, value in data.items() if key not in special})
    ConfigStore.instance().store(name="experiment", node=OmegaConf.create(node))
    GlobalHydra.instance().clear()
    try:
        with initialize(config_path=None, version_base=None):
            composed = compose("experiment", overrides=accepted)
    except Exception as error:  # hydra and omegaconf raise many types for a bad override
        problems.append(f"command line: {first_line(error)}")
        return data
    return {**special, **cast(dict[str, Any], OmegaConf.to_container(composed, resolve=False))}


def _canonical(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`data` with other spellings of fields replaced, so that an override of the field wins over the file."""
    names = {key: FIELD_ALIASES.get(f"{prefix}{key}", f"{prefix}{key}")[len(prefix) :] for key in data}
    if len(set(names.values())) < len(names):
        return data  # both spellings are set: reported later
    return {
        names[key]: _canonical(value, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in data.items()
    }


def _accepted(override: str, problems: list[str]) -> str | None:
    """The override in Hydra's force-add form, or None if it is invalid (the problem is appended)."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    shown = override if len(override) <= 200 else f"{override[:197]}..."
    override = _with_quotes(override)
    try:
        parsed = OverridesParser.create().parse_override(override)
    except (HydraException, ValueError, RecursionError) as error:  # ValueError: an integer of thousands of digits
        hint = "; quote a value with special characters: key='\"a=b\"'" if "=" in override else ""
        problems.append(f"command line: '{shown}' is not key=value: {first_line(error)}{hint}")
        return None
    if not parsed.key_or_group:
        problems.append(f"command line: '{shown}' is not key=value: there is no key")
        return None
    name = FIELD_ALIASES.get(parsed.key_or_group, parsed.key_or_group)
    if parsed.is_sweep_override():
        problems.append(f"{name}: '{shown}' is a list of alternatives; write a list as [a,b], a text as '\"a,b\"'")
        return None
    if not _is_field(name):
        problems.append(f"{name[:200]}: no such field{suggestion(name)}")
        return None
    text = override.lstrip("+~")
    text = name + text.removeprefix(parsed.key_or_group)
    return f"~{text}" if parsed.is_delete() else f"++{text}"


def _with_quotes(override: str) -> str:
    """The override with its value in quotes if it can only be text, such as a path that is not ASCII."""
    match = _PLAIN_TEXT.fullmatch(override)
    return f"{match[1]}='{match[2]}'" if match else override


def _is_field(name: str) -> bool:
    """Whether a dotted name is a field or is inside a free-form field (a mapping or a list)."""
    if name in field_names():
        return True
    free = [n for n, _, hint in walk_fields() if "dict" in str(hint) or "list" in str(hint)]
    return any(name.startswith(f"{parent}.") for parent in free)
