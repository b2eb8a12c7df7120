"""Read weights files and build their detectors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rtdetr_tool.checkpoints.detector_file import DetectorFile, read_detector
from rtdetr_tool.checkpoints.loading import LoadReport, load_into
from rtdetr_tool.checkpoints.metadata import section_of
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.formats.base import OpenRequest, Recorded
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.spec import ExperimentSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightsFile:
    """A weights file in memory.

    Args:
        new_classes: ignore its class heads and its recorded classes.
    """

    contents: DetectorFile
    new_classes: bool = False

    @property
    def recorded(self) -> Recorded:
        return Recorded(self.contents.source, self.meta)

    @property
    def meta(self) -> Mapping[str, Any]:
        return without_classes(self.contents.meta) if self.new_classes else self.contents.meta


def read(path: str, request: OpenRequest) -> WeightsFile:
    """Read weights of any supported program, a directory of transformers, or published weights by name."""
    return WeightsFile(read_detector(path, request.loaded.explicit.get("model") or {}))


def build_network(file: WeightsFile, spec: ExperimentSpec) -> Detector:
    """The detector with the file's weights, in training mode and on the CPU.

    Raises:
        CheckpointError: a tensor does not fit, or a required value is neither in the file nor in the spec.
    """
    contents = file.contents
    if not file.new_classes:
        _log_summary(contents, spec)
        check_complete(contents, spec)
    assert spec.dataset.num_classes is not None  # checked above, or set for the new classes
    detector = build_detector(spec.model, spec.dataset.num_classes)
    report: LoadReport = load_into(detector, contents.weights, source=contents.source, strict=not file.new_classes)
    if file.new_classes:
        logger.warning("%s", report.summary())
    return detector


def without_classes(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a file without its classes, for a detector with other classes."""
    spec = dict(meta.get("spec") or {})
    spec["dataset"] = {name: value for name, value in section_of(spec, "dataset").items() if name == "augmentation"}
    return {**meta, "spec": spec, "classes": []}


def _log_summary(file: DetectorFile, spec: ExperimentSpec) -> None:
    if file.ours:
        kind = "averaged (EMA)" if file.meta.get("weights") == "ema" else "trained"
        outputs = spec.dataset.num_classes
        logger.info("%s: %s weights of %s, %s class outputs", file.source, kind, spec.model.kind, outputs)
    else:
        logger.warning("%s", file.summary())


def check_complete(file: DetectorFile, spec: ExperimentSpec) -> None:
    """CheckpointError if a value required to build the detector is neither in the file nor in the user's spec."""
    if spec.dataset.num_classes is None:
        raise CheckpointError(f"{file.source} does not record its number of classes; set dataset.num_classes.")
    outside = spec.model.family.outside_weights(spec.model)
    if file.ours and outside is not None and not outside.path:
        section, _, name = f"spec.model.{outside.field}".rpartition(".")
        trained_with = section_of(file.meta, section).get(name)
        raise CheckpointError(
            f"{file.source} requires the weights of {outside.name}, which are in another file. It was trained "
            f"with {trained_with}, but paths in a checkpoint are never opened; set model.{outside.field}."
        )
