"""Observations of the keypoint fields, for tests/test_field_effects.py."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from rtdetr_tool.ops.structures import (
    Detections,
    InstanceKeypoints,
    KeypointPredictions,
    Predictions,
    Target,
)

RFDETR = {"model__arch": "rfdetr", "model__rfdetr__num_queries": 12, "model__rfdetr__group_detr": 2}
POSING = {**RFDETR, "model__rfdetr__use_grouppose_keypoints": True, "model__rfdetr__num_keypoints_per_class": [3]}


def one_object() -> Target:
    points = torch.tensor([[[0.3, 0.4, 2.0], [0.6, 0.5, 1.0], [0.0, 0.0, 0.0]]])
    box = torch.tensor([[0.5, 0.5, 0.4, 0.4]])
    return Target(box, torch.zeros(1, dtype=torch.long), 1, (64, 64), (64.0, 64.0), keypoints=points)


def predictions(spec) -> Predictions:
    """A query on the object, with keypoints that are neither right nor certain."""
    layout = spec.model.keypoints
    values = torch.linspace(-0.5, 0.7, 24).view(1, 1, 3, 8)
    keypoints = KeypointPredictions(values, layout.counts, layout.trace_alpha)
    logits = torch.zeros(1, 1, spec.dataset.num_classes)
    return Predictions(logits, one_object().boxes[None], keypoints=keypoints)


def keypoint_losses(spec):
    from rtdetr_tool.losses.build import build_criterion

    found = build_criterion(spec.model).eval()(predictions(spec), [one_object()])
    return {name: float(value) for name, value in found.items()}


def keypoint_scores(spec):
    from rtdetr_tool.ops.postprocess import postprocess

    return postprocess(predictions(spec), [one_object()], 1)[0].scores.tolist()


def sides(spec):
    """Which keypoints exchange places in a mirrored image."""
    from rtdetr_tool.data.build import build_train_dataset

    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (8, 8)).save(Path(folder) / "a.png")
        annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 8, 8], "area": 64, "iscrowd": 0,
                      "keypoints": [1, 1, 2, 5, 5, 2]}  # fmt: skip
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}], "annotations": [annotation],
            "categories": [{"id": 1, "name": "cat", "keypoints": ["left ear", "right ear"]}],
        }  # fmt: skip
        file = Path(folder) / "a.json"
        file.write_text(json.dumps(content))
        source = {"image_dir": folder, "json_file": str(file)}
        dataset = replace(spec.dataset, train_data_sources=[source], val_data_sources=None, test_data_sources=None)
        return build_train_dataset(dataset, kind="keypoints").class_map.poses[1].swaps


def keypoint_metrics(spec):
    from rtdetr_tool.metrics.build import build_evaluator
    from rtdetr_tool.ops.classes import ClassMap

    class Labeled:
        class_map = ClassMap.from_categories({0: "cat"})

        def coco_ground_truth(self):
            annotation = {"id": 1, "image_id": 1, "category_id": 0, "bbox": [0, 0, 90, 90], "area": 8100, "iscrowd": 0,
                          "keypoints": [10, 10, 2, 50, 50, 2, 80, 20, 2]}  # fmt: skip
            images = [{"id": 1, "file_name": "a", "width": 100, "height": 100}]
            return {"images": images, "annotations": [annotation], "categories": [{"id": 0, "name": "cat"}]}

    spec = replace(spec, dataset=replace(spec.dataset, eval_class_ids=None))
    evaluator = build_evaluator(Labeled(), spec)
    points = torch.tensor([[[15.0, 12, 1], [55, 44, 1], [78, 25, 1]]])
    keypoints = InstanceKeypoints(points, torch.zeros(1, 3, 3), (3,), (100.0, 100.0))
    box, score, label = torch.tensor([[0.0, 0, 90, 90]]), torch.tensor([0.9]), torch.tensor([0])
    evaluator.update([1], [Detections(box, score, label, None, keypoints)])
    return evaluator.compute().keypoints
