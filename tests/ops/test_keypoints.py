"""Keypoints of detections against rfdetr 1.11, and which keypoints exchange places in a mirrored image."""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.ops.keypoints import Pose, oks_sigmas, pixel_covariance, swaps_of_names, swaps_of_pairs
from rtdetr_tool.ops.postprocess import postprocess
from rtdetr_tool.ops.structures import KeypointPredictions, Predictions, Target

NOTHING = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)


def predictions(counts, alpha=0.2, classes=4):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 6, len(counts) * max(counts), 8, generator=generator)
    logits = torch.randn(2, 6, classes, generator=generator)
    boxes = torch.rand(2, 6, 4, generator=generator) * 0.4 + 0.2
    return Predictions(logits, boxes, keypoints=KeypointPredictions(values, tuple(counts), alpha))


@pytest.mark.parametrize("alpha", [0.2, 0.0])
@pytest.mark.parametrize("counts", [[5], [0, 3, 2]])
def test_keypoints_scores_and_covariances_of_detections_are_those_of_the_package(counts, alpha):
    package = pytest.importorskip("rfdetr.models.postprocess", reason="requires the package rfdetr")
    from rfdetr.utilities.keypoints import precision_cholesky_to_pixel_covariance

    found = predictions(counts, alpha)
    sizes = [(60, 80), (100, 50)]
    targets = [Target(*NOTHING, i, size, (float(size[1]), float(size[0]))) for i, size in enumerate(sizes)]
    ours = postprocess(found, targets, 20)
    judge = package.PostProcess(20, list(counts), trace_alpha=alpha)
    raw = {"pred_logits": found.logits, "pred_boxes": found.boxes, "pred_keypoints": found.keypoints.values}
    for actual, expected, size in zip(ours, judge(raw, torch.tensor(sizes)), sizes, strict=True):
        order = expected["scores"].argsort(descending=True, stable=True)
        torch.testing.assert_close(actual.scores, expected["scores"][order], atol=1e-6, rtol=0)
        assert torch.equal(actual.labels, expected["labels"][order])
        torch.testing.assert_close(actual.boxes, expected["boxes"][order], atol=1e-4, rtol=0)
        torch.testing.assert_close(actual.keypoints.points, expected["keypoints"][order], atol=1e-4, rtol=0)
        precision = expected["keypoint_precision_cholesky"][order]
        torch.testing.assert_close(actual.keypoints.precision, precision, atol=1e-6, rtol=0, equal_nan=True)
        shapes = torch.tensor([size] * len(precision)).numpy()
        covariance = torch.from_numpy(precision_cholesky_to_pixel_covariance(precision.numpy(), shapes))
        torch.testing.assert_close(pixel_covariance(actual.keypoints), covariance, rtol=1e-5, atol=0, equal_nan=True)


def test_scores_are_in_descending_order_and_selections_keep_their_keypoints():
    (first, _) = postprocess(predictions([5]), [Target(*NOTHING, i, (60, 80), (80.0, 60.0)) for i in range(2)], 20)
    assert first.scores.tolist() == sorted(first.scores.tolist(), reverse=True)
    kept = first.above(float(first.scores[2]))
    assert torch.equal(kept.keypoints.points, first.keypoints.points[:3])


@pytest.mark.parametrize(
    ("names", "swaps"),
    [
        (("nose", "left_eye", "right_eye"), (0, 2, 1)),
        (("L-Wrist", "R-Wrist", "top"), (1, 0, 2)),
        (("left", "right"), (1, 0)),
        (("left_eye", "nose"), None),
        (("a", "b"), None),
        (("left", "left"), None),
        (("upper_left", "bright"), None),
    ],
)
def test_left_and_right_follow_from_names(names, swaps):
    assert swaps_of_names(names) == swaps


def test_pairs_must_be_different_keypoints_of_the_class():
    assert swaps_of_pairs([0, 2], 3) == (2, 1, 0) and swaps_of_pairs([], 2) == (0, 1)
    assert all(swaps_of_pairs(pairs, 3) is None for pairs in ([0], [0, 0], [0, 3], [0, 1, 1, 2]))


def test_poses_are_plain_data_in_files():
    pose = Pose(("a", "b"), ((0, 1),), (1, 0))
    assert pose.to_dict()["skeleton"] == [[1, 2]] and Pose.from_dict(pose.to_dict()) == pose
    assert Pose.from_dict({"index": 1}) is None
    for wrong in ({"keypoints": ["a"], "swaps": [3]}, {"keypoints": ["a"], "skeleton": [[1, 2]]}):
        with pytest.raises(ValueError, match=r"swaps|skeleton"):
            Pose.from_dict(wrong)


def test_sigmas_of_a_person_are_those_of_coco_and_others_uniform():
    assert len(oks_sigmas(17)) == 17 and oks_sigmas(17)[0] == 0.026
    assert oks_sigmas(3) == [0.05] * 3 and oks_sigmas(2, [0.1, 0.2, 0.3]) == [0.1, 0.2]
