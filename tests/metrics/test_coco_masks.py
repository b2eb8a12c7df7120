"""Mask AP against pycocotools, on generated discs."""

from __future__ import annotations

import io
import json
import pickle
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rtdetr_tool.metrics.coco import CocoEvaluator
from rtdetr_tool.ops.masks import encode, to_coco
from rtdetr_tool.ops.structures import Detections, InstanceMasks

SIZE = (60, 80)  # height, width
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "ARmax1", "ARmax10", "ARmax100", "ARs", "ARm", "ARl")


class Classes:
    num_classes = 2

    def category_id_of(self, index):
        return (3, 7)[index]


def disc(x, y, radius):
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(columns[0]), float(rows[0]), float(np.ptp(columns) + 1), float(np.ptp(rows) + 1)]


def scenes(rng, images):
    """Ground truth, and its discs moved a little as `Detections` with masks of the full size."""
    annotations, result = [], {}
    for image_id in range(1, images + 1):
        logits, rows = [], []
        for _ in range(int(rng.integers(1, 6))):
            x, y, radius, label = *rng.uniform(15, 45, 2), rng.uniform(4, 14), int(rng.integers(2))
            mask, moved = disc(x, y, radius), disc(*(np.array([x, y]) + rng.normal(scale=2, size=2)), radius * 0.9)
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image_id, "category_id": CATEGORIES[label]["id"],
                    "bbox": box_of(mask), "area": float(mask.sum()), "iscrowd": int(rng.random() < 0.1),
                    "segmentation": to_coco(encode(mask), SIZE),
                }
            )  # fmt: skip
            logits.append(np.where(moved, 1.0, -1.0))
            rows.append((box_of(moved), rng.random(), label if rng.random() < 0.8 else 1 - label))
        boxes, scores, labels = zip(*rows, strict=True)
        corners = torch.tensor(boxes)
        corners[:, 2:] += corners[:, :2]
        masks = InstanceMasks(torch.tensor(np.stack(logits)), torch.arange(len(rows)), SIZE, SIZE)
        result[image_id] = Detections(corners, torch.tensor(scores), torch.tensor(labels), masks)
    entries = [{"id": i, "height": SIZE[0], "width": SIZE[1], "file_name": f"{i}.jpg"} for i in result]
    return {"images": entries, "annotations": annotations, "categories": CATEGORIES}, result


def evaluate(truth, found):
    evaluator = CocoEvaluator(truth, Classes())
    evaluator.update(found.keys(), found.values())
    return evaluator


def judge(truth, results, kind):
    with redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps(truth))
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(json.loads(json.dumps(results))), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = (None if value == -1 else value for value in evaluation.stats)  # undefined
    return dict(zip(STATS, numbers, strict=True))


def test_mask_and_box_ap_are_pycocotools():
    truth, actual = scenes(np.random.default_rng(0), 12)
    evaluator = evaluate(truth, actual)
    result = evaluator.compute()
    assert 0.1 < result.masks["AP"] < 0.9 and result.masks["AP"] != result.stats["AP"]
    assert result.masks == pytest.approx(judge(truth, evaluator.results_json(), "segm"), abs=1e-9)
    assert result.stats == pytest.approx(judge(truth, _boxes_only(evaluator.results_json()), "bbox"), abs=1e-9)
    assert result.to_dict()["masks"]["mAP50"] == result.masks["AP50"]


def _boxes_only(results):
    return [{key: value for key, value in row.items() if key != "segmentation"} for row in results]


def test_processes_are_joined_with_their_masks():
    truth, result = scenes(np.random.default_rng(1), 6)
    alone = evaluate(truth, result)
    shares = [{i: result[i] for i in result if i % 2 == rank} for rank in range(2)]
    joined = CocoEvaluator(truth, Classes())
    joined.merge(pickle.loads(pickle.dumps([evaluate(truth, share).state() for share in shares])))
    assert joined.compute() == alone.compute() and joined.results_json() == alone.results_json()


def test_an_object_whose_mask_is_not_known_is_neither_found_nor_missed_as_a_mask():
    truth, result = scenes(np.random.default_rng(2), 1)
    truth["annotations"] = [{**a, "iscrowd": 0} for a in truth["annotations"][:2]]
    masks = result[1].masks.logits[:2]
    labels = torch.tensor([[3, 7].index(a["category_id"]) for a in truth["annotations"]])
    boxes, scores = result[1].boxes[:2], torch.tensor([0.9, 0.8])
    both = {1: Detections(boxes, scores, labels, InstanceMasks(masks, torch.arange(2), SIZE, SIZE))}
    whole = evaluate(truth, both).compute()
    del truth["annotations"][1]["segmentation"]
    left = evaluate(truth, both).compute()
    assert left.stats == whole.stats
    only = {**truth, "annotations": truth["annotations"][:1]}
    one = {1: both[1].select([True, False])}
    assert left.masks == pytest.approx(evaluate(only, one).compute().masks)


def test_without_masks_there_is_not_a_mask_ap():
    truth, actual = scenes(np.random.default_rng(3), 2)
    actual = {i: Detections(d.boxes, d.scores, d.labels) for i, d in actual.items()}
    result = evaluate(truth, actual).compute()
    assert result.masks is None and result.to_dict()["masks"] is None
    assert all("segmentation" not in row for row in evaluate(truth, actual).results_json())


def test_no_detections_of_a_model_with_masks_score_zero():
    truth, result = scenes(np.random.default_rng(4), 2)
    nothing = {i: d.above(2.0) for i, d in result.items()}
    assert evaluate(truth, nothing).compute().masks["AP"] == 0
