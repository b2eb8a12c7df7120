"""Open a detector from keyword arguments."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from rtdetr_tool.api.keywords import applied, model_settings
from rtdetr_tool.checkpoints.detector_file import adapt_file, read_detector
from rtdetr_tool.checkpoints.metadata import section_of
from rtdetr_tool.errors import UserError
from rtdetr_tool.families import DEFAULT_FAMILY, all_families, family_named, family_of
from rtdetr_tool.families.keywords import Settings
from rtdetr_tool.formats.opening import OpenedDetector, build_opened
from rtdetr_tool.formats.torch.file import WeightsFile
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.spec import LoadedSpec, spec_from_dict
from rtdetr_tool.spec.required import required
from rtdetr_tool.spec.validate import inert_notes

logger = logging.getLogger(__name__)

RANDOM = "random weights"  # the `source` of a detector without a file


def choose_device(device: torch.device | str) -> torch.device:
    """`auto` selects a GPU if there is one; UserError for an unavailable device."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        selected = torch.device(device)
        torch.zeros(1, device=selected)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]  # the rest lists what torch was built with
        raise UserError(
            f"device: {str(device)!r} is not available ({reason}); expected 'auto', 'cpu' or a GPU that PyTorch can "
            "use, such as 'cuda:0'"
        ) from None
    return selected


def open_variant(
    pretrain_weights: str | os.PathLike[str] | None,
    base: Settings,
    keywords: Mapping[str, Any],
    num_classes: int | None,
    where: str,
) -> tuple[OpenedDetector, str]:
    """A detector with these weights, by path or published name, or with random ones, and its `source`."""
    if pretrain_weights is None:
        return open_random(base, keywords, num_classes, where), RANDOM
    name = os.fspath(pretrain_weights)
    return open_weights(name, base, keywords, num_classes, where), name


def open_random(base: Settings, keywords: Mapping[str, Any], num_classes: int | None, where: str) -> OpenedDetector:
    """A detector with random weights, except for the backbone if `pretrained_backbone_path` is set."""
    family = family_named(base["model.arch"])
    rows = None if num_classes is None else family.class_rows(num_classes)
    loaded = _loaded({**base, **model_settings(keywords, family, where)}, rows)
    spec = loaded.spec
    detector = build_detector(spec.model, required(spec.dataset.num_classes, "dataset.num_classes"))
    if spec.model.pretrained_backbone_path:
        from rtdetr_tool.training.initial_weights import load_initial_weights

        load_initial_weights(detector, spec, ())
    return OpenedDetector(detector, {}, None, spec, untrained_heads=True)


def open_weights(
    weights: str, base: Settings, keywords: Mapping[str, Any], num_classes: int | None, where: str
) -> OpenedDetector:
    """The detector of a weights file or of published weights by name.

    With another number of classes, the class heads are initialized from scratch. For images with another number of
    channels, the first convolution is adapted.

    Raises:
        CheckpointError: `base` or `keywords` contradict the file.
    """
    given = {**keywords, **{family.section: keywords for family in all_families() if family.section}}
    file = read_detector(weights, given)  # for settings that the file does not record
    family = family_of(section_of(file.meta, "spec.model").get("arch"))
    known = section_of(file.meta, "spec.dataset").get("num_classes")
    settings = {**base, **model_settings(keywords, family, where)}
    adapt_file(file, settings.get("model.num_channels"))
    rows = known if num_classes is None else family.class_rows(num_classes)
    new_classes = rows != known
    return build_opened(WeightsFile(file, new_classes), _loaded(settings, rows if new_classes else None))


def loaded_for_deployed(keywords: Mapping[str, Any], where: str) -> LoadedSpec:
    """Settings for a deployed file; only dotted names are accepted, because everything else is fixed."""
    return _loaded(model_settings(keywords, family_named(DEFAULT_FAMILY), where), None)


def _loaded(settings: Settings, rows: int | None) -> LoadedSpec:
    data = applied({}, settings if rows is None else {**settings, "dataset.num_classes": rows})
    spec = spec_from_dict(data)
    for note in inert_notes(spec):
        logger.warning("%s", note)
    return LoadedSpec(spec, data)


def with_size(opened: OpenedDetector, size: tuple[int, int]) -> OpenedDetector:
    """The same detector for inputs of (height, width)."""
    dataset = opened.spec.dataset
    augmentation = replace(dataset.augmentation, eval_spatial_size=list(size))
    return replace(opened, spec=replace(opened.spec, dataset=replace(dataset, augmentation=augmentation)))
