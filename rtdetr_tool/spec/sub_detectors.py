"""The sub-detectors of a `train.supernet` section: which there are, and the spec of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rtdetr_tool.errors import nearest_multiples
from rtdetr_tool.spec.augmentation import AugmentationSpec
from rtdetr_tool.spec.convert import shown
from rtdetr_tool.spec.experiment import ExperimentSpec
from rtdetr_tool.spec.model import ModelSpec
from rtdetr_tool.spec.supernet import CHOICES, NUMBERS, RESOLUTION

MOST = 10_000  # combinations
_NAME = "train.supernet"
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class SubDetector:
    """One combination of choices.

    Args:
        size: height and width of its input.
        numbers: of the choices that the section lists, such as `decoder_layers`.
        differing: the numbers that are not the whole model's.
    """

    size: Size
    numbers: Mapping[str, int]
    differing: Mapping[str, int]

    @property
    def values(self) -> dict[str, Any]:
        """The combination for tables and files."""
        height, width = self.size
        return {RESOLUTION: height if height == width else [height, width], **self.numbers}


def sub_detectors(spec: ExperimentSpec) -> list[SubDetector]:
    """All combinations that the model can run, the whole model first."""
    supernet, model = spec.train.supernet, spec.model
    whole = model.family.whole_detector(model)
    sizes = list(dict.fromkeys([whole_size(spec.dataset.augmentation), *map(size_of, supernet.resolution)]))
    listed = {name: getattr(supernet, name) for name in NUMBERS if getattr(supernet, name)}
    options = [dict.fromkeys([whole[name], *numbers]) for name, numbers in listed.items()]
    result = []
    for size, *row in itertools.product(sizes, *options):
        numbers = dict(zip(listed, row, strict=True))
        sub = SubDetector(size, numbers, {name: n for name, n in numbers.items() if n != whole[name]})
        if not _problems(sub, model):
            result.append(sub)
    return result


def sub_spec_values(sub: SubDetector, model: ModelSpec) -> dict[str, Any]:
    """Dotted field of the spec -> value, which make the spec of the whole model that of a sub-detector."""
    fields = {f"model.{name}": value for name, value in _model_values(sub, model).items()}
    size = {f"dataset.augmentation.{name}": list(sub.size) for name in ("eval_spatial_size", "train_spatial_size")}
    return {**fields, **size, "dataset.augmentation.multi_scales": [], f"{_NAME}.enabled": False}


def training_sizes(spec: ExperimentSpec) -> list[Size]:
    """(height, width) of the images that the network is trained with."""
    augmentation = spec.dataset.augmentation
    if spec.train.supernet.enabled:
        return [sub.size for sub in sub_detectors(spec)]
    return [size_of(size) for size in augmentation.multi_scales] or [size_of(augmentation.train_spatial_size)]


def whole_size(augmentation: AugmentationSpec) -> Size:
    """The input size of the whole model."""
    height, width = augmentation.eval_spatial_size
    return (max(height, width),) * 2 if augmentation.preserve_aspect_ratio else (height, width)


def size_of(entry: int | Sequence[int]) -> Size:
    """(height, width) of the side of a square, or of a pair."""
    height, width = (entry, entry) if isinstance(entry, int) else entry
    return int(height), int(width)


def supernet_problems(spec: ExperimentSpec, command: str) -> Iterator[str]:
    """What is wrong with an enabled `train.supernet` section."""
    supernet, model, augmentation = spec.train.supernet, spec.model, spec.dataset.augmentation
    whole, family, count = model.family.whole_detector(model), model.family, len(augmentation.multi_scales)
    if not any(getattr(supernet, name) for name in CHOICES):
        yield f"{_NAME}: expected values of at least one of {', '.join(f'{_NAME}.{name}' for name in CHOICES)}"
    if augmentation.multi_scales:
        yield (
            f"{_NAME}.enabled and dataset.augmentation.multi_scales ({count} sizes) cannot both be set, because both "
            f"decide the size of the images; list the sizes in {_NAME}.resolution, and remove multi_scales"
        )
    yield from _unsupported(spec, command)
    wrong = False
    for name in CHOICES:
        values, place = getattr(supernet, name), f"{_NAME}.{name}"
        found = [*_size_problems(values, place, augmentation)] if name == RESOLUTION else []
        if values and name != RESOLUTION and (reason := family.fixed_reason(model, name)):
            found.append(f"{place} is not supported with {family.title}: {reason}; set it to []")
        elif name in ("decoder_layers", "num_queries") and values and max(values) > whole[name]:
            found.append(f"{place}: {max(values)} is invalid; expected at most {whole[name]}, which the model has")
        if not found and any(value in values[:index] for index, value in enumerate(values)):
            found.append(f"{place}: {shown(values)} is invalid; expected different values")
        wrong = wrong or bool(found)
        yield from found
    if not wrong:
        yield from _combination_problems(spec)


def _combination_problems(spec: ExperimentSpec) -> Iterator[str]:
    """Too many combinations, and values without any that the model can run."""
    supernet = spec.train.supernet
    total = 1
    for name in CHOICES:
        total *= 1 + len(getattr(supernet, name))
    if total > MOST:
        yield f"{_NAME}: {total} combinations are too many; expected at most {MOST}"
        return
    subs = sub_detectors(spec)
    if not subs:
        return  # the model itself is wrong, which is reported elsewhere
    for value in supernet.resolution:
        size = size_of(value)
        if all(sub.size != size for sub in subs):
            multiple = spec.model.size_multiple
            nearest = " x ".join(nearest_multiples(side, multiple) for side in dict.fromkeys(size))
            yield (
                f"{_NAME}.resolution: {shown(value)} is invalid; expected a multiple of {multiple}, nearest: {nearest}"
            )
    for name in NUMBERS:
        for number in getattr(supernet, name):
            if all(sub.numbers[name] != number for sub in subs):
                sub = SubDetector(whole_size(spec.dataset.augmentation), {name: number}, {name: number})
                reason = "; ".join(_problems(sub, spec.model)) or "it fits none of the sizes"
                yield f"{_NAME}.{name}: {number} is invalid with all sizes and other choices: {reason}"


def _unsupported(spec: ExperimentSpec, command: str) -> Iterator[str]:
    train, supernet = spec.train, spec.train.supernet
    if command == "distill":
        yield f"{_NAME}.enabled is not supported with distill, whose bindings have fixed shapes; set it to false"
    if train.distributed_strategy == "fsdp":
        yield f"{_NAME}.enabled is not supported with train.distributed_strategy=fsdp; use ddp"
    if train.compile and (supernet.num_windows or supernet.patch_size):
        yield f"{_NAME}.num_windows and patch_size are not supported with train.compile=true; set it to false"
    if not spec.dataset.batch_size:
        yield f"dataset.batch_size: auto is not supported with {_NAME}.enabled; set a number such as 8"


def _size_problems(values: Sequence[Any], place: str, augmentation: AugmentationSpec) -> Iterator[str]:
    for index, value in enumerate(values):
        sides = value if isinstance(value, (list, tuple)) else [value]
        count = 2 if isinstance(value, (list, tuple)) else 1
        if len(sides) != count or not all(type(side) is int and side > 0 for side in sides):
            yield f"{place}[{index}]: {shown(value)} is invalid; expected a side or [height, width]"
        elif augmentation.preserve_aspect_ratio and len(set(sides)) > 1:
            yield (
                f"{place}[{index}]: {shown(value)} is invalid; expected a side, because with "
                "dataset.augmentation.preserve_aspect_ratio images are padded to squares"
            )


def _model_values(sub: SubDetector, model: ModelSpec) -> dict[str, Any]:
    return model.family.sub_values(model, sub.differing, sub.size)


def _problems(sub: SubDetector, model: ModelSpec) -> list[str]:
    """Why the model cannot run as this sub-detector."""
    for name, value in _model_values(sub, model).items():
        model = _replaced(model, name.split("."), value)
    multiple = model.size_multiple
    if any(side % multiple for side in sub.size):
        return [f"an input of {sub.size[0]} x {sub.size[1]} is not a multiple of {multiple}"]
    return list(model.family.problems(model, "model"))


def _replaced(section: Any, names: Sequence[str], value: Any) -> Any:
    """A copy of nested dataclasses with another value at a dotted name."""
    inner = value if len(names) == 1 else _replaced(getattr(section, names[0]), names[1:], value)
    return replace(section, **{names[0]: inner})
