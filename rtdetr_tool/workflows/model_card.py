"""The model card of a detector on the Hugging Face Hub: README.md with metadata, scores, classes, spec and usage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from rtdetr_tool.catalog import INHERITED_LICENSES
from rtdetr_tool.workflows.convert import RTDETR, TRANSFORMERS

LIBRARY = "rtdetr-tool"
LAYOUTS = (RTDETR, TRANSFORMERS)
# Names of metrics in checkpoints -> names on the card. The first one is the main score.
_SCORES = {
    "val/mAP_50_95": "mAP 50-95", "val_mAP": "mAP 50-95", "val/mAP_50": "mAP 50", "val_mAP50": "mAP 50",
    "val/mAP_75": "mAP 75", "val/mAR": "mAR", "val/F1": "F1", "val/precision": "precision", "val/recall": "recall",
    "val/segm_mAP_50_95": "mask mAP 50-95", "val/segm_mAP_50": "mask mAP 50", "val/loss": "loss", "val_loss": "loss",
}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """What the card is about.

    Args:
        repo_id: the id on the Hub, or the name of the folder.
        kind: the kind of detector, such as `rtdetr-resnet_50`.
        size: (height, width) of its input.
        classes: names of the classes by index, None for a row without a class.
        metrics: validation results by name, as recorded in the checkpoint.
        spec: the spec to publish.
        license: an identifier of the Hub such as `apache-2.0`; None if it is not stated.
        layout: `rtdetr` or `transformers`.
    """

    repo_id: str
    kind: str
    parameters: int
    size: tuple[int, int]
    classes: Sequence[str | None]
    metrics: Mapping[str, float]
    spec: Mapping[str, Any]
    license: str | None
    layout: str
    version: str
    averaged: bool

    def text(self) -> str:
        """The whole README.md."""
        parts = [
            f"---\n{yaml.safe_dump(self._metadata(), sort_keys=False, allow_unicode=True)}---",
            f"# {self.repo_id.rpartition('/')[2]}",
            f"An object detector, {self.kind}, trained with {LIBRARY} {self.version}.",
            self._facts(), self._scores(), self._classes(), self._usage(), self._spec(),
        ]  # fmt: skip
        return "\n\n".join(part for part in parts if part) + "\n"

    def scores(self) -> dict[str, float]:
        """The recorded metrics by their names on the card."""
        return {name: float(self.metrics[key]) for key, name in _SCORES.items() if key in self.metrics}

    def _metadata(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "library_name": TRANSFORMERS if self.layout == TRANSFORMERS else LIBRARY,
            "pipeline_tag": "object-detection",
            "tags": ["object-detection", "vision", *self.kind.split("-")[:1]],
        }
        if self.license in INHERITED_LICENSES:
            data |= {"license": "other", "license_name": self.license.lower().replace(" ", "-")}
        elif self.license is not None:
            data["license"] = self.license
        metrics = [{"type": name, "value": round(value, 4)} for name, value in self.scores().items() if name != "loss"]
        if metrics:
            results = [{"task": {"type": "object-detection"}, "dataset": _DATASET, "metrics": metrics}]
            data["model-index"] = [{"name": self.repo_id.rpartition("/")[2], "results": results}]
        return data

    def _facts(self) -> str:
        height, width = self.size
        rows = {
            "parameters": f"{self.parameters:,}",
            "input": f"{height} x {width} pixels, RGB",
            "class outputs": len(self.classes),
            "weights": "averaged (EMA)" if self.averaged else "trained",
            "license": self.license or "not stated",
        }
        return _table(("property", "value"), rows.items())

    def _scores(self) -> str:
        rows = [(name, f"{value:.4f}") for name, value in self.scores().items()]
        head = "## Scores\n\nOn the validation data of the training run."
        return f"{head}\n\n{_table(('metric', 'value'), rows)}" if rows else ""

    def _classes(self) -> str:
        rows = [(index, _cell(name)) for index, name in enumerate(self.classes) if name is not None]
        return f"## Classes\n\n{_table(('index', 'name'), rows)}" if rows else ""

    def _usage(self) -> str:
        text = (
            f'```python\nfrom rtdetr_tool import Detector\n\nmodel = Detector.from_checkpoint("{self.repo_id}")\n'
            f'detections = model.predict("image.jpg", threshold=0.5)\n```\n\n'
            f"```bash\nrtdetr inference -e spec.yaml inference.checkpoint={self.repo_id}\n```"
        )
        return f"## Usage\n\n{text}"

    def _spec(self) -> str:
        text = yaml.safe_dump(dict(self.spec), sort_keys=False, allow_unicode=True)
        return f"## Spec\n\n<details>\n<summary>Resolved training spec</summary>\n\n```yaml\n{text}```\n\n</details>"


_DATASET = {"type": "custom", "name": "validation data"}


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)])


def _cell(text: str) -> str:
    """A class name that cannot end a table cell or become markup."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return " ".join(escaped.split())
