"""The analysis of an evaluation against numbers computed by hand, and against the evaluation's result."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rtdetr_tool.metrics.analysis import analyze
from rtdetr_tool.metrics.coco import CocoEvaluator
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Detections

NAMES = {3: "cat", 5: "dog", 9: "bird"}


def evaluator(annotations, images=(1, 2), eval_class_ids=None) -> CocoEvaluator:
    truth = {
        "images": [{"id": number, "width": 100, "height": 100} for number in images],
        "categories": [{"id": number, "name": name} for number, name in NAMES.items()],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": list(box), "area": box[2] * box[3],
             "iscrowd": crowd}
            for n, (image, category, box, crowd) in enumerate(annotations)
        ],
    }  # fmt: skip
    return CocoEvaluator(truth, ClassMap.from_categories(NAMES), eval_class_ids)


def detections(*rows) -> Detections:
    """Rows of class index, score, x, y, width, height."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    boxes = torch.cat([table[:, 2:4], table[:, 2:4] + table[:, 4:]], 1)
    return Detections(boxes, table[:, 1], table[:, 0].long())


A, B, C = (10, 10, 20, 20), (50, 10, 20, 20), (10, 60, 20, 20)


@pytest.fixture
def scored():
    """Image 1: a detected cat, a dog detected as a cat, a missed bird. Image 2: a crowd of dogs and a false bird."""
    result = evaluator([(1, 3, A, 0), (1, 5, B, 0), (1, 9, C, 0), (2, 5, A, 1)])
    result.update([1], [detections((0, 0.95, *A), (0, 0.85, *B), (1, 0.05, 70, 70, 20, 20))])
    result.update([2], [detections((1, 0.7, *A), (2, 0.6, 60, 60, 20, 20))])
    return result


def test_the_confusion_matrix_counts_true_against_predicted_classes_from_the_best_threshold_on(scored):
    analysis = analyze(scored)
    confusion = analysis.confusion
    assert confusion.names == ["cat", "dog", "bird"]
    assert confusion.threshold == analysis.result.best.threshold == pytest.approx(0.86)
    assert confusion.matrix.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]


def test_a_lower_threshold_shows_the_mix_up_and_the_crowd_stays_out(scored):
    result = scored.confusion_at(0.5).confusion_matrix(iou_thr=0.5)
    # rows cat, dog, bird, background; the dog on the crowd region (0.7) is neither correct nor wrong
    assert result["matrix"].astype(int).tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]


def test_images_are_ranked_by_their_errors_at_the_best_threshold(scored):
    ranked = analyze(scored).images
    assert [(image.image_id, image.correct, image.wrong, image.missed) for image in ranked] == [
        (1, 1, 0, 2),
        (2, 0, 0, 0),
    ]
    assert ranked[0].f1 == pytest.approx(0.5) and ranked[1].f1 == 1.0


def test_calibration_compares_scores_with_the_share_of_correct_detections(scored):
    calibration = analyze(scored).calibration
    # counted: 0.95 correct, 0.85, 0.05 and 0.6 wrong; the one on the crowd region is not counted
    assert calibration.counts.sum() == 4
    assert calibration.ece == pytest.approx((0.05 + 0.85 + 0.05 + 0.6) / 4)
    assert calibration.mce == pytest.approx(0.85)


def test_error_types_name_the_mix_up_and_the_miss(scored):
    counts = {error.name: error.count for error in analyze(scored).errors}
    assert counts["Cls"] == 1 and counts["Bkg"] == 2 and counts["Loc"] == 0
    assert counts["Miss"] == 1  # the bird; the dog counts as a confusion


def test_curves_give_the_scores_of_the_result(scored):
    analysis = analyze(scored)
    result = analysis.result
    assert set(analysis.precision) == {"cat", "dog", "bird"}
    assert analysis.mean_precision["IoU 0.50"].mean() == pytest.approx(result.map50)
    assert analysis.mean_precision["IoU 0.50:0.95"].mean() == pytest.approx(result.map)
    assert analysis.mean_precision["IoU 0.75"].mean() == pytest.approx(result.stats["AP75"])
    at = np.abs(analysis.thresholds - result.best.threshold).argmin()
    assert analysis.mean_at_threshold[:, at] == pytest.approx(
        [result.best.f1, result.best.precision, result.best.recall]
    )


def test_only_the_classes_that_are_scored_appear():
    result = evaluator([(1, 3, A, 0), (1, 5, B, 0)], eval_class_ids=[5])
    result.update([1], [detections((0, 0.9, *A), (1, 0.8, *B))])
    analysis = analyze(result)
    assert analysis.confusion.names == ["dog"] and list(analysis.precision) == ["dog"]
    assert analysis.confusion.matrix.tolist() == [[1, 0], [0, 0]]
    assert [(image.correct, image.wrong, image.missed) for image in analysis.images] == [(1, 0, 0)]


def test_without_objects_everything_is_undefined_or_empty():
    result = evaluator([])
    result.update([1, 2], [detections((0, 0.9, *A)), detections()])
    analysis = analyze(result)
    assert analysis.result.map is None and analysis.mean_at_threshold is None
    assert analysis.precision == {} and analysis.mean_precision == {}
    assert analysis.confusion.matrix.sum() == 1 and analysis.confusion.matrix[3, 0] == 1


def test_without_detections_calibration_is_undefined():
    result = evaluator([(1, 3, A, 0)])
    result.update([1], [detections()])
    analysis = analyze(result)
    assert analysis.calibration.ece is None and analysis.result.map == 0
    assert [(image.image_id, image.missed) for image in analysis.images] == [(1, 1)]
