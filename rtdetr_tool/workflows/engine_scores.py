"""Scores of an engine's graph in each precision, measured in ONNX Runtime before the engine is built."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from rtdetr_tool.catalog import BOXES, KEYPOINTS
from rtdetr_tool.data.build import build_eval_dataset, build_loader, scoring_of
from rtdetr_tool.data.build_sources import pixel_format_of
from rtdetr_tool.data.scoring import log_scoring
from rtdetr_tool.errors import CheckpointError, RtdetrError
from rtdetr_tool.formats.onnx.file import read
from rtdetr_tool.formats.onnx.runtime import OnnxRuntime
from rtdetr_tool.formats.opening import with_keypoints
from rtdetr_tool.formats.precision import scoring_options
from rtdetr_tool.formats.table import size_of
from rtdetr_tool.metrics.build import build_evaluator
from rtdetr_tool.ops.keypoints import check_counts
from rtdetr_tool.status import current_status
from rtdetr_tool.workflows.detection import score
from rtdetr_tool.workflows.engine import Source
from rtdetr_tool.workflows.engine_precision import Scores, Variant

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreGate:
    """A command's limit on the loss of mAP, `<section>.max_score_drop`.

    Args:
        remedy: what did not happen, and what to do about it.
    """

    section: str
    remedy: str

    def check(self, variants: list[Variant], allowed: float) -> None:
        """RtdetrError if the last precision loses more than `allowed` mAP compared with the first, of any kind."""
        first, last = variants[0].scores, variants[-1].scores
        if first is None or last is None:
            return
        for name, before in maps_of(first).items():
            after = maps_of(last)[name]
            if before is None or after is None:
                logger.warning(
                    "%s.max_score_drop cannot be checked: the %d scored images have nothing to score, so %s is "
                    "undefined. Score more images (%s.score_images) or others (dataset.val_data_sources).",
                    self.section, last["images"], name, self.section,
                )  # fmt: skip
            elif before - after > allowed:
                raise RtdetrError(
                    f"{variants[-1].precision} loses {100 * (before - after):.2f} points of {name} ({before:.4f} to "
                    f"{after:.4f}); expected at most {100 * allowed:.2f} ({self.section}.max_score_drop). "
                    f"{self.remedy}"
                )


def maps_of(scores: Scores) -> dict[str, float | None]:
    """The mAP of boxes, and that of masks or keypoints if the model predicts them."""
    return {"mAP": scores["mAP"], **{f"{kind}_mAP": value for kind, value in scores["other_mAP"].items()}}


ENGINE_GATE = ScoreGate(
    "gen_trt_engine",
    "No engine was built. Keep more layers in a higher precision (tensorrt.layers_precision), calibrate on more "
    "images, or raise the limit.",
)


def score_variants(variants: list[Variant], source: Source, limit: int, gate: ScoreGate = ENGINE_GATE) -> None:
    """Measure mAP and speed of each precision in ONNX Runtime on (a part of) the validation set, if there is one."""
    spec = source.spec
    if limit == 0 or not spec.dataset.val_data_sources:
        reason = f"{gate.section}.score_images is 0" if limit == 0 else "dataset.val_data_sources is not set"
        logger.warning("Skipping scores and the check of %s.max_score_drop: %s", gate.section, reason)
        return
    kind = spec.model.predicts
    dataset = build_eval_dataset(spec.dataset, "val", source.class_map, kind, pixels=pixel_format_of(spec))
    if kind == KEYPOINTS:
        check_counts(spec.model.keypoints.counts, dataset.class_map, "the val data")
    if 0 < limit < len(dataset):
        dataset = dataset.sample_of(limit, seed=0)
    log_scoring("val", dataset, scoring_of(spec))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for variant in variants:
        evaluator = build_evaluator(dataset, spec)
        options = scoring_options() if device == "cpu" else None
        file = with_keypoints(read(variant.file), spec)
        runtime = OnnxRuntime(file, dataset.class_map, device, options=options)
        loader = build_loader(dataset, spec.dataset, training=False)
        try:
            times = score(runtime, loader, evaluator, spec.model.num_select, title=f"Scoring {variant.precision}")
        except CheckpointError as error:
            if variant is variants[0]:
                raise
            raise RtdetrError(
                f"{variant.precision} does not run on the validation images: {error}. {gate.remedy}"
            ) from error
        result = evaluator.compute()
        variant.scores = {
            "mAP": result.map,
            "mAP50": result.map50,
            "other_mAP": {name: stats["AP"] for name, stats in result.by_kind.items() if name != BOXES},
            "images": times.images,
            "model_ms_per_image": 1000 * times.model / max(1, times.images),
            "bytes": size_of(variant.file),
        }
    kpi = {
        f"{name}_{variant.precision}": value
        for variant in variants
        if variant.scores
        for name, value in maps_of(variant.scores).items()
    }
    current_status().running("Precision scored.", kpi=kpi)
