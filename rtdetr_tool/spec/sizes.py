"""Default image sizes, which follow from `train.supernet` and the family's section."""

from __future__ import annotations

from typing import Any

from rtdetr_tool.families import family_of
from rtdetr_tool.spec.convert import from_plain
from rtdetr_tool.spec.supernet import SupernetSpec


def with_sizes(data: dict[str, Any]) -> dict[str, Any]:
    """Spec data with the image sizes that are not set, where the family or `train.supernet` determines them."""
    dataset = data.get("dataset", {})
    if not (isinstance(dataset, dict) and isinstance(dataset.get("augmentation", {}), dict)):
        return data
    given, supernet = dataset.get("augmentation", {}), _supernet(data)
    sizes: dict[str, Any] = {}
    if supernet is not None:  # it decides the size of each step instead
        sizes, given = {"multi_scales": []}, {"multi_scales": [], **given}
        scales: list[Any] | None = supernet.resolution
    else:
        scales = given["multi_scales"] if isinstance(given.get("multi_scales"), list) else None
    sizes = {**_sizes_of_family(data, scales), **sizes}
    return {**data, "dataset": {**dataset, "augmentation": {**sizes, **given}}} if sizes else data


def _supernet(data: dict[str, Any]) -> SupernetSpec | None:
    """The section if it is enabled."""
    train = data.get("train")
    section = train.get("supernet") if isinstance(train, dict) else None
    if not isinstance(section, dict):
        return None
    supernet = from_plain(SupernetSpec, section, [])  # its problems are reported when the whole spec is converted
    return supernet if supernet.enabled else None


def _sizes_of_family(data: dict[str, Any], scales: list[Any] | None) -> dict[str, list[Any]]:
    model = data.get("model")
    family = family_of(model.get("arch") if isinstance(model, dict) else None)
    if not isinstance(model, dict) or family.section is None or family.section_type is None:
        return {}
    section = model.get(family.section, {})
    if not isinstance(section, dict):
        return {}
    wrong: list[str] = []  # reported when the whole spec is converted
    sizes = family.default_sizes(from_plain(family.section_type, section, wrong), scales)
    return {} if wrong else sizes
