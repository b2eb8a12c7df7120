"""What exports share: FP32 must agree with PyTorch, and a lower precision may change detections up to a limit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor

from rtdetr_tool.files import remove_unfinished, replacing
from rtdetr_tool.formats.export_request import ExportRequest
from rtdetr_tool.formats.lower_precision import check_change, precision_of
from rtdetr_tool.formats.table import FULL, size_of
from rtdetr_tool.formats.verification import Predict
from rtdetr_tool.progress import Steps

CONVERTING, COMPARING, LOWERING = "converting the network", "comparing with PyTorch", "lowering the precision"


class VerifiedExport(ABC):
    """The order of an export; the class of a format defines how it converts, writes and runs a detector.

    Args:
        shares: of converting, comparing and lowering the precision in the whole time, in any unit.
    """

    shares = (6.0, 3.0, 6.0)

    def __init__(self, request: ExportRequest) -> None:
        self.request, self.precision = request, precision_of(request)

    def run(self) -> dict[str, Any]:
        """Verify and write the file; returns the content of `export.json`.

        Raises:
            RtdetrError: the file does not agree with PyTorch, or a lower precision costs more than `max_cost`.
        """
        request, lowered = self.request, self.precision != FULL
        shares = dict(zip((CONVERTING, COMPARING, LOWERING)[: 3 if lowered else 2], self.shares, strict=False))
        remove_unfinished(request.target)
        with Steps(f"Exporting to {request.format.title}", shares) as steps:
            steps.begin(CONVERTING)
            self.convert()
            with self.replacing(request.target) as file:
                report = self.write(file, request.description, FULL)
                steps.begin(COMPARING)
                differences = request.verify(file, self.predictor, self.run_once)
                if lowered:
                    steps.begin(LOWERING)
                    report = self.write(file, {**request.description, "precision": self.precision}, self.precision)
                    report |= check_change(request, self.predictor(file), self.precision, size_of(file))
                return {**request.report(file, differences), "data_type": self.precision, **report}

    def replacing(self, target: Path) -> AbstractContextManager[Path]:
        """A temporary path that replaces `target` when the block succeeds."""
        return replacing(target)

    @abstractmethod
    def convert(self) -> None:
        """Prepare what `write` needs; called once, before the first file."""

    @abstractmethod
    def write(self, file: Path, description: dict[str, Any], precision: str) -> dict[str, Any]:
        """Write the detector with its metadata; returns what `export.json` contains in this format only."""

    @abstractmethod
    def predictor(self, file: Path) -> Predict:
        """The detections of a written file."""

    @abstractmethod
    def run_once(self, file: Path, images: Tensor) -> dict[str, Tensor]:
        """All outputs of a written file with one input for `images`, which are passed unchanged."""
