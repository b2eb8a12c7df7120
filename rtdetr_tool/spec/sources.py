"""The data sources of a spec: defaults that follow from `dataset.dataset_dir`, and checks of each source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rtdetr_tool.spec.convert import shown
from rtdetr_tool.spec.dataset import DatasetSpec
from rtdetr_tool.spec.fields import is_blank
from rtdetr_tool.spec.tables import SOURCE_KEYS

_SPLITS = {"train_data_sources": "train", "val_data_sources": "val", "test_data_sources": "test"}


def with_sources(data: dict[str, Any]) -> dict[str, Any]:
    """Plain data of a spec with the sources that follow from `dataset.dataset_dir`.

    With a dataset folder, the number of classes defaults to that of the data.
    """
    dataset = data.get("dataset")
    if not isinstance(dataset, dict):
        return data
    dataset, place = dict(dataset), dataset.get("dataset_dir")
    if isinstance(place, str) and not is_blank(place):
        for name, split in _SPLITS.items():
            if is_blank(dataset.get(name)):
                source = {"dataset_dir": place, "split": split}
                dataset[name] = [source] if name == "train_data_sources" else source
    if any(not is_blank(entry.get("dataset_dir")) for name in _SPLITS for entry in _entries(dataset.get(name))):
        dataset.setdefault("num_classes", None)
    return {**data, "dataset": dataset}


def source_problems(dataset: DatasetSpec) -> Iterator[str]:
    """Problems of the sources of a `dataset` section."""
    for field in SOURCE_KEYS:
        value = getattr(dataset, field)
        if isinstance(value, list):
            for index, source in enumerate(value):
                yield from _source(source, field, f"dataset.{field}[{index}]")
        elif value is not None:
            yield from _source(value, field, f"dataset.{field}")
    shares, sources = dataset.train_source_shares, dataset.train_data_sources or []
    if shares is not None and len(shares) != len(sources):
        yield (
            f"dataset.train_source_shares: expected {len(sources)} items, one per item of train_data_sources, but got "
            f"{len(shares)}"
        )
    place = dataset.dataset_dir
    named = [entry.get("dataset_dir") for name in _SPLITS for entry in _entries(getattr(dataset, name))]
    if place and not is_blank(place) and place not in named:
        yield (
            f"dataset.dataset_dir: {shown(place)} has no effect, because train_, val_ and test_data_sources are "
            "all set; remove it or one of them"
        )
    if dataset.format != "auto" and not any(named):
        yield (
            f"dataset.format: {dataset.format} is invalid; expected auto, because no source has a dataset_dir "
            "(image_dir with json_file is COCO)"
        )


def _source(source: dict[str, Any], field: str, name: str) -> Iterator[str]:
    forms = SOURCE_KEYS[field]
    given = [form for form in forms if not is_blank(source.get(form[0][0]))]
    needed, optional = next(iter(given), next((form for form in forms if form[0][0] in source), forms[0]))
    for key in source:
        if key not in (*needed, *optional):
            yield f"{name}.{key}: no such field; expected {' or '.join(', '.join((*n, *o)) for n, o in forms)}"
    if is_blank(source):
        return  # an empty source counts as not set: only commands that need it require it
    for key in needed:
        if is_blank(source.get(key)):
            yield f"{name}.{key}: required, but not set"
    for key, value in source.items():
        yield from _value(value, key, field, f"{name}.{key}")
    split = source.get("split")
    if isinstance(split, str) and not re.fullmatch(r"\w[\w.-]*|", split):
        yield f"{name}.split: {shown(split)} is invalid; expected the name of a split, such as train, val or test"


def _value(value: Any, key: str, field: str, name: str) -> Iterator[str]:
    several = isinstance(value, list) and key in ("image_dir", "video") and field == "infer_data_sources"
    items = value if several else [value]
    if key == "video":
        if not all(item is None or isinstance(item, str) or type(item) is int for item in items):
            yield f"{name}: {shown(value)} is invalid; expected a path, a URL, the index of a camera, or a list of them"
    elif not all(item is None or isinstance(item, str) for item in items):
        yield f"{name}: {shown(value)} is invalid; expected a path{' or a list of paths' * several}"


def _entries(sources: Any) -> list[dict[str, Any]]:
    """The sources of a field as a list, without values that are not mappings."""
    return [entry for entry in (sources if isinstance(sources, list) else [sources]) if isinstance(entry, dict)]
