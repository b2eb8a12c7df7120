"""The reports of commands: of an evaluation and of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rtdetr_tool.data.dataset import EvalDataset
from rtdetr_tool.files import read_limited
from rtdetr_tool.metrics.analysis import analyze
from rtdetr_tool.metrics.coco import CocoEvaluator
from rtdetr_tool.metrics.result import CocoResult
from rtdetr_tool.reports.evaluation import evaluation_sections, score_tiles
from rtdetr_tool.reports.facts import run_section
from rtdetr_tool.reports.files import write_page
from rtdetr_tool.reports.history import read_history
from rtdetr_tool.reports.page import Chart, Gallery, Page, Section
from rtdetr_tool.reports.training import training_sections

_MAX_SPEC_BYTES = 4 << 20


def write_evaluation_report(
    folder: Path,
    model: str,
    evaluator: CocoEvaluator,
    result: CocoResult,
    dataset: EvalDataset,
    facts: Mapping[str, str],
) -> Path:
    """Write `report.html` of an evaluation to `folder`; returns its path.

    Args:
        facts: information about the run, by label.
    """
    analysis = analyze(evaluator, result)
    sections = [
        *evaluation_sections(analysis, evaluator, dataset.records, dataset.class_map, pixels=dataset.pixels),
        run_section(facts, spec_text(folder)),
    ]
    page = Page(f"Evaluation of {Path(model).name}", f"{model}, {_now()}", score_tiles(analysis), sections)
    return write_page(page, folder)


@dataclass(frozen=True)
class TrainingReport:
    """What the report of a training run shows, besides the curves in its results folder.

    Args:
        tiles: values at the top, before the scores, by label.
        facts: information about the run, by label.
        evaluation: the latest validation, if there was one since the last report, of the dataset `validated`.
    """

    title: str
    tiles: Mapping[str, str]
    facts: Mapping[str, str]
    evaluation: tuple[CocoEvaluator, CocoResult] | None
    validated: EvalDataset | None
    dataset_sections: Sequence[Section]

    def write(self, folder: Path) -> dict[str, bytes]:
        """Write the report to `folder`; returns its charts (PNG) and sample images (JPEG) by name."""
        sections, tiles = training_sections(read_history(folder)), list(self.tiles.items())
        if self.evaluation is not None and self.validated is not None:
            (evaluator, result), data = self.evaluation, self.validated
            analysis = analyze(evaluator, result)
            tiles += score_tiles(analysis)
            sections += evaluation_sections(analysis, evaluator, data.records, data.class_map, pixels=data.pixels)
        images = images_of(sections)
        sections += [*self.dataset_sections, run_section(self.facts, spec_text(folder))]
        write_page(Page(self.title, f"{folder}, {_now()}", tiles, sections), folder)
        return images


def images_of(sections: Sequence[Section]) -> dict[str, bytes]:
    """The charts of an evaluation and its worst images, by name, for loggers that show images."""
    images = {}
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Chart) and section.title in ("Curves", "Errors"):
                images[f"plots/{block.name}"] = block.png
            elif isinstance(block, Gallery):
                kind = section.title.replace(" ", "_").lower()
                images |= {f"{kind}/{n}": image.jpeg for n, image in enumerate(block.images) if image.jpeg}
    return images


def spec_text(folder: Path) -> str:
    """The `experiment.yaml` of a results folder; empty without one."""
    try:
        return read_limited(folder / "experiment.yaml", _MAX_SPEC_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M")
