"""Keypoint AP against pycocotools, on generated poses."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rtdetr_tool.metrics.coco import CocoEvaluator
from rtdetr_tool.ops.keypoints import COCO_SIGMAS, oks_sigmas
from rtdetr_tool.ops.structures import Detections, InstanceKeypoints

STATS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")


class Classes:
    num_classes = 2

    def category_id_of(self, index):
        return (3, 7)[index]


def scenes(rng, images, counts):
    """Poses of 40 to 150 pixels, and detections of them that are a few pixels off; `counts` by class index."""
    most, annotations, result = max(counts), [], {}
    for image_id in range(1, images + 1):
        rows = []
        for _ in range(int(rng.integers(1, 5))):
            label, side = int(rng.integers(2)), rng.uniform(40, 150)
            corner = rng.uniform(0, 100, 2)
            points = np.zeros((most, 3))
            points[: counts[label], :2] = corner + rng.uniform(0, side, (counts[label], 2))
            points[: counts[label], 2] = rng.integers(0, 3, counts[label]) * (rng.random() < 0.9)
            moved = points.copy()
            moved[:, :2] += rng.normal(scale=side / 30, size=(most, 2))
            moved[:, 2] = rng.random(most)
            box = [*corner.tolist(), side, side]
            found = points[: counts[label]].ravel().tolist()
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": (3, 7)[label], "bbox": box,
                 "area": side * side * 0.6, "iscrowd": 0, **({"keypoints": found} if found else {})}
            )  # fmt: skip
            rows.append((box, rng.random(), label, moved))
        boxes, scores, labels, points = zip(*rows, strict=True)
        corners = torch.tensor(boxes)
        corners[:, 2:] += corners[:, :2]
        keypoints = InstanceKeypoints(
            torch.tensor(np.stack(points)), torch.zeros(len(rows), most, 3), tuple(counts), (1.0, 1.0)
        )
        result[image_id] = Detections(corners, torch.tensor(scores), torch.tensor(labels), None, keypoints)
    entries = [{"id": i, "height": 300, "width": 300, "file_name": f"{i}.jpg"} for i in result]
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    return {"images": entries, "annotations": annotations, "categories": categories}, result


def evaluate(truth, found, **options):
    evaluator = CocoEvaluator(truth, Classes(), **options)
    evaluator.update(found.keys(), found.values())
    return evaluator


def judge(truth, results, category_ids, sigmas):
    """pycocotools' metrics of some categories, -1 as None."""
    truth = json.loads(json.dumps(truth))
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] in category_ids]
    for annotation in truth["annotations"]:
        annotation["num_keypoints"] = sum(visible > 0 for visible in annotation["keypoints"][2::3])
    kept = [{k: v for k, v in row.items() if k != "bbox"} for row in results if row["category_id"] in category_ids]
    with redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(kept), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.params.catIds = category_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(STATS, [None if value == -1 else value for value in evaluation.stats], strict=True))


def test_keypoint_ap_is_that_of_pycocotools():
    truth, found = scenes(np.random.default_rng(0), 15, [17, 17])
    evaluator = evaluate(truth, found)
    result = evaluator.compute()
    expected = judge(truth, evaluator.results_json(), [3, 7], COCO_SIGMAS)
    assert 0.1 < result.keypoints["AP"] < 0.95 and result.keypoints == pytest.approx(expected, abs=1e-9)
    assert result.to_dict()["keypoints"]["mAP50"] == result.keypoints["AP50"] and result.masks is None


def test_classes_with_other_numbers_of_keypoints_are_averaged_and_those_without_ignored():
    truth, found = scenes(np.random.default_rng(1), 15, [5, 17])
    evaluator = evaluate(truth, found)
    results = evaluator.results_json()
    groups = [judge(truth, results, [3], oks_sigmas(5)), judge(truth, results, [7], COCO_SIGMAS)]
    mean = {name: (groups[0][name] + groups[1][name]) / 2 for name in ("AP", "AP50", "AR")}
    assert {name: evaluator.compute().keypoints[name] for name in mean} == pytest.approx(mean, abs=1e-9)

    truth, found = scenes(np.random.default_rng(1), 15, [5, 0])
    evaluator = evaluate(truth, found)
    assert evaluator.compute().keypoints == pytest.approx(judge(truth, evaluator.results_json(), [3], oks_sigmas(5)))
    assert {len(row["keypoints"]) for row in evaluator.results_json() if row["category_id"] == 7} == {0}


def test_given_sigmas_and_selected_categories_count():
    truth, found = scenes(np.random.default_rng(2), 10, [5, 5])
    sigmas = [0.02, 0.03, 0.05, 0.1, 0.2]
    evaluator = evaluate(truth, found, sigmas=sigmas, eval_class_ids=[7])
    expected = judge(truth, evaluator.results_json(), [7], sigmas)
    assert evaluator.compute().keypoints == pytest.approx(expected, abs=1e-9)


def test_processes_are_joined_with_their_keypoints():
    truth, found = scenes(np.random.default_rng(3), 6, [5, 5])
    joined = CocoEvaluator(truth, Classes())
    joined.merge([evaluate(truth, {i: found[i] for i in found if i % 2 == rank}).state() for rank in range(2)])
    assert joined.compute() == evaluate(truth, found).compute()


def test_without_keypoints_in_the_truth_there_are_no_keypoint_scores():
    truth, found = scenes(np.random.default_rng(4), 3, [5, 5])
    for annotation in truth["annotations"]:
        del annotation["keypoints"]
    result = evaluate(truth, found).compute()
    assert result.keypoints is None and result.to_dict()["keypoints"] is None


def test_selected_categories_without_keypoints_have_no_keypoint_scores():
    truth, found = scenes(np.random.default_rng(5), 6, [5, 0])
    result = evaluate(truth, found, eval_class_ids=[7]).compute()
    assert result.keypoints is None and result.stats["AP"] > 0
