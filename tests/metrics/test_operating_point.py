"""The best confidence threshold: computed by hand, against hotcoco's matching, and against RF-DETR's package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import hotcoco
import numpy as np
import pytest

from rtdetr_tool.metrics.operating_point import UNDEFINED, ClassDetections, best_operating_point, match_detections


def drawn(seed: int, count: int = 40):
    """Objects [G, 4] xywh of two classes with crowd regions, and detections near them."""
    rng = np.random.default_rng(seed)
    truth = np.column_stack([rng.uniform(0, 60, (12, 2)), rng.uniform(8, 40, (12, 2))])
    classes, crowd = rng.integers(1, 3, 12), rng.random(12) < 0.2
    picked = rng.integers(0, 12, count)
    boxes = (truth[picked] + rng.normal(0, 4, (count, 4))).clip(0.5)
    labels = np.where(rng.random(count) < 0.8, classes[picked], 3 - classes[picked])
    return truth, classes, crowd, boxes, rng.permutation(count) / count, labels


@pytest.mark.parametrize("seed", range(5))
def test_detections_are_matched_as_coco_matches_them(seed):
    truth, classes, crowd, boxes, scores, labels = drawn(seed)
    correct, counted = match_detections(boxes, scores, labels, truth, classes, crowd)
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": int(c), "bbox": box.tolist(), "area": float(box[2] * box[3]),
         "iscrowd": int(many)}
        for i, (box, c, many) in enumerate(zip(truth, classes, crowd, strict=True))
    ]  # fmt: skip
    images = [{"id": 1, "width": 120, "height": 120}]
    coco = hotcoco.COCO({"images": images, "annotations": annotations, "categories": [{"id": 1}, {"id": 2}]})
    table = np.column_stack([np.ones(len(boxes)), boxes, scores, labels])
    evaluation = hotcoco.COCOeval(coco, coco.load_res(table), "bbox")
    evaluation.evaluate()
    expected = {}
    for entry in evaluation.eval_imgs:
        if entry is not None and entry["aRng"][0] == 0 and entry["aRng"][1] > 1e6:
            flags = zip(entry["dtScores"], entry["dtMatched"][0], entry["dtIgnore"][0], strict=True)
            expected |= {round(score, 9): (bool(hit and not ignored), not ignored) for score, hit, ignored in flags}
    actual = {round(s, 9): (bool(c), bool(k)) for s, c, k in zip(scores, correct, counted, strict=True)}
    assert actual == expected


def test_the_threshold_with_the_greatest_mean_f1_is_taken():
    """Class 1: one of two objects is detected at 0.9, with a false detection at 0.4. Class 2: its object at 0.6."""
    classes = {
        1: ClassDetections(np.array([0.9, 0.4]), np.array([True, False]), 2),
        2: ClassDetections(np.array([0.6]), np.array([True]), 1),
        3: ClassDetections(np.array([0.8]), np.array([False]), 0),  # no objects: does not count
    }
    best = best_operating_point(classes)
    assert best.threshold == pytest.approx(0.41)
    assert (best.precision, best.recall) == (1.0, 0.75)
    assert best.f1 == pytest.approx((2 / 3 + 1) / 2)
    assert best_operating_point({3: classes[3]}) == UNDEFINED


def test_the_numbers_are_those_of_rfdetrs_package():
    package = importlib.util.find_spec("rfdetr")
    if package is None:
        pytest.skip("requires the package rfdetr")
    file = Path(package.submodule_search_locations[0], "evaluation", "f1_sweep.py")
    spec = importlib.util.spec_from_file_location("f1_sweep", file)
    judge = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(judge)
    rng = np.random.default_rng(2)
    actual = {k: ClassDetections(rng.random(50), rng.random(50) < 0.6, 40) for k in range(3)}
    rows = [
        {"scores": f.scores, "matches": f.correct.astype(int), "ignore": np.zeros(50, dtype=bool), "total_gt": 40}
        for f in actual.values()
    ]
    expected = max(
        judge.sweep_confidence_thresholds(rows, np.linspace(0, 1, 101), [0, 1, 2]), key=lambda row: row["macro_f1"]
    )
    best = best_operating_point(actual)
    assert best.threshold == pytest.approx(expected["confidence_threshold"])
    for own, reference in (("f1", "macro_f1"), ("precision", "macro_precision"), ("recall", "macro_recall")):
        assert getattr(best, own) == pytest.approx(expected[reference])
