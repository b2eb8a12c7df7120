"""What an export writes and verifies, in any format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rtdetr_tool.data.pixels import RGB, PixelFormat
from rtdetr_tool.files import sha256_of
from rtdetr_tool.formats.comparison import Difference
from rtdetr_tool.formats.export_model import ExportFeatures, ExportModel
from rtdetr_tool.formats.graph_tensors import to_graph
from rtdetr_tool.formats.table import Format, size_of
from rtdetr_tool.formats.verification import (
    FeatureDifference,
    Features,
    Predict,
    Reference,
    verify_detections,
    verify_features,
)
from rtdetr_tool.spec import DatasetSpec, ExportSpec
from rtdetr_tool.version import package_version

Differences = Sequence[Difference] | Sequence[FeatureDifference]


@dataclass(frozen=True)
class ExportRequest:
    """A wrapped detector, the file to write, and the reference that it is verified against.

    Args:
        size: (height, width) of the input.
        batch: None = dynamic.
        description: the metadata of the file (`description.py`).
        dataset: the section of the checkpoint's spec, for calibration images.
        calibration: images [N, C, H, W] to use instead of those in the section.
        pixels: what image files are decoded to.
    """

    format: Format
    section: ExportSpec
    target: Path
    model: ExportModel | ExportFeatures
    size: tuple[int, int]
    batch: int | None
    description: dict[str, Any]
    reference: Reference
    dataset: DatasetSpec
    calibration: NDArray[np.generic] | None = None
    pixels: PixelFormat = RGB

    def features_of(self, file: Path, run_once: Callable[[Path, Tensor], dict[str, Tensor]]) -> Features:
        """A function from images 0..1 to the feature maps of a file without decoder; `run_once` runs the file."""

        def run(images: Tensor) -> list[Tensor]:
            outputs = run_once(file, to_graph(images, self.model.layout))
            return [outputs[name] for name in self.model.output_names]

        return run

    def verify(
        self, file: Path, predictor: Callable[[Path], Predict], run_once: Callable[[Path, Tensor], dict[str, Tensor]]
    ) -> Differences:
        """Compare a written file with PyTorch: its detections, or its feature maps if it has no decoder.

        Args:
            predictor: opens a file with a decoder.
            run_once: runs one without.

        Raises:
            RtdetrError: the differences exceed `export.tolerance`.
        """
        tolerance, target = self.section.tolerance, self.target
        if self.section.backbone_only:
            return verify_features(self.reference, self.features_of(file, run_once), tolerance, target)
        return verify_detections(self.reference, predictor(file), tolerance, target)

    def report(self, file: Path, differences: Differences) -> dict[str, Any]:
        """What `export.json` contains for every format; `file` is the verified one, a directory has no hash."""
        return {
            f"{self.format.name}_file": str(self.target),
            "checkpoint": self.section.checkpoint,
            "sha256": None if file.is_dir() else sha256_of(file),
            "bytes": size_of(file),
            "batch": "dynamic" if self.batch is None else self.batch,
            "layout": self.section.layout,
            "input_size": list(self.size),
            "outputs": list(self.model.output_names),
            "tolerance": self.section.tolerance,
            "pictures": self.reference.origin,
            "differences": [difference.to_dict() for difference in differences],
            "version": package_version(),
        }


class ExportModule(Protocol):
    """`export.py` of a format."""

    def export(self, request: ExportRequest) -> dict[str, Any]:
        """Verify and write `request.target`; returns the content of `export.json`."""
        ...


def export_module(row: Format) -> ExportModule:
    return cast(ExportModule, row.module("export"))
