"""Checks whose score is undefined say so: precision losses without objects, mask scores without masks."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from rtdetr_tool.data.dataset import EvalDataset
from rtdetr_tool.data.findings import Findings
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.data.scoring import Scoring, check_scoring
from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.workflows.engine_precision import Variant
from rtdetr_tool.workflows.engine_scores import ENGINE_GATE


def variants(before: float | None, after: float | None) -> list[Variant]:
    scores = ({"mAP": value, "mAP50": value, "images": 4, "other_mAP": {}} for value in (before, after))
    return [Variant(name, Path("m.onnx"), None, score) for name, score in zip(("FP32", "INT8"), scores, strict=True)]


def test_a_loss_that_cannot_be_measured_is_a_warning_and_not_zero(caplog):
    with caplog.at_level(logging.WARNING, "rtdetr_tool"):
        ENGINE_GATE.check(variants(None, None), 0.01)
    assert "gen_trt_engine.max_score_drop cannot be checked: the 4 scored images have nothing to score" in caplog.text


def test_a_loss_above_the_limit_builds_no_engine(caplog):
    ENGINE_GATE.check(variants(0.5, 0.495), 0.01)
    assert caplog.text == ""
    with pytest.raises(RtdetrError, match=r"INT8 loses 5\.00 points of mAP .* expected at most 1\.00"):
        ENGINE_GATE.check(variants(0.5, 0.45), 0.01)


def test_a_loss_of_keypoints_above_the_limit_builds_no_engine():
    pair = variants(0.5, 0.5)
    for variant, value in zip(pair, (0.6, 0.5), strict=True):
        variant.scores["other_mAP"] = {"keypoints": value}
    with pytest.raises(RtdetrError, match=r"INT8 loses 10\.00 points of keypoints_mAP"):
        ENGINE_GATE.check(pair, 0.01)


def kinds(masks, scoring: Scoring, split: str = "val") -> list[str]:
    record = ImageRecord(
        "a.png", 1, 64, 48, np.array([[1.0, 1, 9, 9]]), np.array([0]), np.array([False]), np.array([64.0]), masks
    )
    dataset = EvalDataset([record], ClassMap.from_categories({1: "cat"}), (64, 64), kind="masks")
    findings = Findings()
    check_scoring(split, dataset, scoring, findings)
    return [result.kind for result in findings]


def test_objects_without_masks_leave_mask_scores_undefined():
    assert kinds([b""], Scoring(kind="masks")) == ["no_scored_masks"]
    assert kinds([b""], Scoring(kind="boxes")) == []
