from __future__ import annotations

import contextlib
import io
import itertools
import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rtdetr_tool.errors import DataError
from rtdetr_tool.metrics.coco import CocoEvaluator
from rtdetr_tool.metrics.image_matches import ImageDetections
from rtdetr_tool.metrics.operating_point import OperatingPoint
from rtdetr_tool.metrics.result import score_text, stat_names
from rtdetr_tool.ops.structures import Detections


class Classes:
    """Class indices 0..K-1 stand for the given category ids."""

    def __init__(self, ids) -> None:
        self.ids = list(ids)
        self.num_classes = len(self.ids)

    def category_id_of(self, index: int) -> int | None:
        return self.ids[index] if 0 <= index < len(self.ids) else None


def ground_truth(rng: np.random.Generator, images: int, ids, objects: int, crowd: float = 0.15) -> dict:
    """Boxes from a few to a few hundred pixels, so that every area range occurs; some images are empty."""
    annotations = []
    for image in range(images):
        for _ in range(int(rng.integers(0, objects + 1)) if image % 4 else 0):
            size = np.round(np.exp(rng.uniform(1.5, 5.6, 2)), 2)
            corner = np.round(rng.uniform(0, 400, 2), 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image * 3 + 1,
                    "category_id": int(rng.choice(ids)),
                    "bbox": [*corner.tolist(), *size.tolist()],
                    "area": float(size.prod() * rng.uniform(0.5, 1)),
                    "iscrowd": int(rng.random() < crowd),
                }
            )
    return {
        "images": [{"id": image * 3 + 1, "width": 640, "height": 640, "file_name": "x"} for image in range(images)],
        "annotations": annotations,
        "categories": [{"id": int(i), "name": f"name{i}"} for i in ids],
    }


def detections(rng: np.random.Generator, truth: dict, ids, noise: int, score_levels: int) -> dict[int, Detections]:
    """Shifted copies of most objects (some twice, some with another class) and noise, with few distinct scores."""
    result = {}
    for image in truth["images"]:
        boxes, labels = [], []
        for annotation in truth["annotations"]:
            if annotation["image_id"] != image["id"]:
                continue
            x, y, w, h = annotation["bbox"]
            for _ in range(int(rng.integers(0, 3))):
                shift = rng.normal(0, 0.12, 4) * [w, h, w, h]
                box = np.array([x, y, x + w, y + h]) + shift
                boxes.append([min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])])
                wrong = rng.random() < 0.2
                labels.append(int(rng.integers(len(ids))) if wrong else list(ids).index(annotation["category_id"]))
        for _ in range(int(rng.integers(0, noise + 1))):
            low = rng.uniform(0, 400, 2)
            boxes.append([*low, *(low + np.exp(rng.uniform(1.5, 5.6, 2)))])
            labels.append(int(rng.integers(len(ids))))
        scores = rng.integers(1, score_levels + 1, len(boxes)) / score_levels
        order = np.argsort(-scores, kind="stable")
        result[image["id"]] = Detections(
            torch.tensor(np.array(boxes).reshape(-1, 4)[order], dtype=torch.float32),
            torch.tensor(scores[order], dtype=torch.float32),
            torch.tensor(np.array(labels, dtype=np.int64)[order]),
        )
    return result


def official(truth: dict, results: list[dict], category_ids=None) -> tuple[np.ndarray, COCOeval]:
    """pycocotools on the same data."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps(truth))
        coco.createIndex()
        if results:
            result = coco.loadRes(json.loads(json.dumps(results)))
        else:
            result = COCO()
            result.dataset = {**coco.dataset, "annotations": []}
            result.createIndex()
        evaluation = COCOeval(coco, result, "bbox")
        if category_ids is not None:
            evaluation.params.catIds = category_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, evaluation


def evaluate(truth, found, ids, eval_class_ids=None) -> CocoEvaluator:
    evaluator = CocoEvaluator(truth, Classes(ids), eval_class_ids)
    evaluator.update(found, found.values())
    return evaluator


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    images=st.integers(1, 8),
    classes=st.integers(1, 4),
    objects=st.integers(0, 12),
    noise=st.sampled_from([0, 5, 130]),
    score_levels=st.sampled_from([1, 3, 1000]),
    crowd=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_all_numbers_equal_pycocotools(seed, images, classes, objects, noise, score_levels, crowd) -> None:
    rng = np.random.default_rng(seed)
    ids = sorted(rng.choice(100, classes, replace=False).tolist())
    truth = ground_truth(rng, images, ids, objects, crowd)
    evaluator = evaluate(truth, detections(rng, truth, ids, noise, score_levels), ids)
    chosen = sorted(rng.choice(ids, int(rng.integers(1, classes + 1)), replace=False).tolist())
    for category_ids in (None, chosen):
        evaluator.category_ids = category_ids or ids
        expected, reference = official(truth, evaluator.results_json(), category_ids)
        result = evaluator.compute()
        assert list(result.stats) == list(stat_names())
        numbers = [-1.0 if value is None else value for value in result.stats.values()]
        np.testing.assert_allclose(numbers, expected, rtol=0, atol=1e-9)
        for k, entry in enumerate(result.per_class):
            values = reference.eval["precision"][:, :, k, 0, 2]
            assert entry.category_id == (category_ids or ids)[k]
            if (values > -1).any():
                assert abs(entry.ap - values.mean()) < 1e-9 and abs(entry.ap50 - values[0].mean()) < 1e-9
                assert abs(entry.ar - reference.eval["recall"][:, k, 0, 2].mean()) < 1e-9
            else:
                assert entry.ap is None and entry.ap50 is None and entry.ar is None and entry.objects == 0


def one_object(annotation_id: int = 1) -> dict:
    truth = ground_truth(np.random.default_rng(0), 2, [5], 0)
    truth["annotations"] = [
        {"id": annotation_id, "image_id": 1, "category_id": 5, "bbox": [10, 10, 50, 50], "area": 2500, "iscrowd": 0}
    ]
    return truth


def one_detection(label: int = 0) -> Detections:
    return Detections(torch.tensor([[10.0, 10, 60, 60]]), torch.tensor([0.9]), torch.tensor([label]))


def nothing() -> Detections:
    return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def test_an_annotation_with_id_zero_counts_as_found() -> None:
    # pycocotools keeps 0 for "unmatched" and would score 0 here
    assert official(one_object(0), evaluate(one_object(), {1: one_detection()}, [5]).results_json())[0][0] < 0.01
    assert evaluate(one_object(0), {1: one_detection()}, [5]).compute().map == pytest.approx(1)


def test_negative_and_64_bit_ids_score_as_others_do() -> None:
    rng = np.random.default_rng(6)
    truth = ground_truth(rng, 8, [1, 2], 6)
    actual = detections(rng, truth, [1, 2], 5, 1000)
    new = {image["id"]: -5 if number == 0 else 2**62 + number for number, image in enumerate(truth["images"])}
    classes = {1: -3, 2: 2**40 + 1}
    moved = {
        "images": [{**image, "id": new[image["id"]]} for image in truth["images"]],
        "annotations": [
            {**a, "image_id": new[a["image_id"]], "category_id": classes[a["category_id"]]}
            for a in truth["annotations"]
        ],
        "categories": [{**category, "id": classes[category["id"]]} for category in truth["categories"]],
    }
    other = evaluate(moved, {new[image]: objects for image, objects in actual.items()}, classes.values())
    assert other.compute().stats == evaluate(truth, actual, [1, 2]).compute().stats
    assert {result["image_id"] for result in other.results_json()} <= set(new.values())
    assert {result["category_id"] for result in other.results_json()} == set(classes.values())


def test_two_annotations_with_the_same_id_count_as_two() -> None:
    truth = one_object(7)
    truth["annotations"].append(truth["annotations"][0] | {"bbox": [100, 100, 50, 50]})
    half = evaluate(truth, {1: one_detection()}, [5]).compute()
    assert half.per_class[0].objects == 2 and half.stats["ARmax100"] == pytest.approx(0.5)


def test_results_have_the_ids_of_the_file_and_boxes_as_xywh() -> None:
    assert evaluate(one_object(), {1: one_detection()}, [5]).results_json() == [
        {"image_id": 1, "category_id": 5, "bbox": [10, 10, 50, 50], "score": pytest.approx(0.9)}
    ]


def test_without_detections_the_score_is_zero_and_without_objects_it_is_undefined() -> None:
    empty = evaluate(one_object(), {1: nothing()}, [5]).compute()
    assert empty.map == 0.0 and empty.per_class[0].ap == 0.0
    truth = one_object() | {"annotations": []}
    result = evaluate(truth, {1: one_detection()}, [5]).compute()
    assert set(result.stats.values()) == {None} and len(result.stats) == 12 and result.per_class[0].ap is None
    assert result.map is None and result.map50 is None and score_text(result.map) == "-"
    assert result.best == OperatingPoint(None, None, None, None)
    assert CocoEvaluator({"images": [], "annotations": [], "categories": []}, Classes([])).compute().map is None
    assert CocoEvaluator(one_object(), Classes([5])).compute().map == 0.0


def test_images_left_without_detections_keep_their_own_results() -> None:
    # TAO drops such images from the list, so that later ones get the ids of their neighbors
    truth = one_object()
    truth["annotations"][0]["image_id"] = 4
    evaluator = CocoEvaluator(truth, Classes([5]))
    evaluator.update([1, 4], [nothing(), one_detection().above(0.5)])
    assert evaluator.compute().map == pytest.approx(1)
    assert [row["image_id"] for row in evaluator.results_json()] == [4]


def test_an_image_seen_twice_counts_once() -> None:
    evaluator = CocoEvaluator(one_object(), Classes([5]))
    evaluator.update([1, 1], [one_detection(), one_detection()])
    evaluator.update([1], [nothing()])
    evaluator.merge([{1: ImageDetections(np.ones((3, 6)))}])
    assert len(evaluator.results_json()) == 1


def test_ranks_are_joined_through_plain_data_in_any_split() -> None:
    rng = np.random.default_rng(1)
    ids = [1, 2, 9]
    truth = ground_truth(rng, 9, ids, 8)
    result = detections(rng, truth, ids, 5, 10)
    alone = evaluate(truth, result, ids)
    states = []
    for rank in range(3):  # the last image is processed by all three
        share = dict(itertools.islice(result.items(), rank, None, 3)) | {25: result[25]}
        states.append(pickle.loads(pickle.dumps(evaluate(truth, share, ids).state())))
    joined = CocoEvaluator(truth, Classes(ids))
    joined.merge(states)
    assert joined.compute() == alone.compute() and joined.results_json() == alone.results_json()
    assert alone.compute().map > 0.1


def test_images_that_never_came_are_known_and_count_as_missed() -> None:
    evaluator = evaluate(one_object(), {4: nothing()}, [5])
    assert evaluator.missing_images == [1] and evaluator.compute().map == 0.0


def test_labels_without_a_category_are_no_detections() -> None:
    classes = SimpleNamespace(num_classes=3, category_id_of=lambda index: {1: 5}.get(index))
    evaluator = CocoEvaluator(one_object(), classes)
    evaluator.update([1], [Detections(torch.zeros(4, 4), torch.rand(4), torch.tensor([0, 1, 2, 7]))])
    assert [row["category_id"] for row in evaluator.results_json()] == [5]


def test_foreign_images_and_unknown_class_ids_are_named() -> None:
    with pytest.raises(DataError, match="Image id 99 is not in the ground truth"):
        evaluate(one_object(), {99: nothing()}, [5])
    with pytest.raises(DataError, match=r"dataset\.eval_class_ids: \[7\] is invalid; .*name5"):
        CocoEvaluator(one_object(), Classes([5]), eval_class_ids=[5, 7])


def test_eval_class_ids_are_category_ids_and_leave_the_rest_out() -> None:
    truth = one_object()
    truth["categories"].append({"id": 0, "name": "other"})
    truth["annotations"].append(truth["annotations"][0] | {"id": 2, "category_id": 0})
    evaluator = CocoEvaluator(truth, Classes([0, 5]), eval_class_ids=[5])
    evaluator.update([1], [one_detection(label=1)])
    result = evaluator.compute()
    assert result.map == pytest.approx(1) and [entry.category_id for entry in result.per_class] == [5]


def test_the_result_as_plain_data_is_strict_json() -> None:
    truth = one_object()
    truth["categories"].append({"id": 6, "name": "absent"})
    plain = evaluate(truth, {1: one_detection()}, [5, 6]).compute().to_dict()
    text = json.loads(json.dumps(plain, allow_nan=False))
    assert text["mAP"] == text["AP"] == pytest.approx(1) and text["mAP50"] == pytest.approx(1) and text["APl"] is None
    assert text["per_class"][0] == {
        "index": 0, "id": 5, "name": "name5", "AP": pytest.approx(1), "AP50": pytest.approx(1), "AR": 1.0, "objects": 1,
        "best": {"threshold": 0.0, "f1": 1.0, "precision": 1.0, "recall": 1.0},
    }  # fmt: skip
    assert text["per_class"][1]["AP"] is None and text["per_class"][1]["index"] == 1
    assert text["images"] == 2 and text["detections"] == 1


def test_nothing_is_printed(capfd) -> None:
    evaluate(one_object(), {1: one_detection()}, [5]).compute()
    assert capfd.readouterr() == ("", "")


def test_an_undefined_score_is_null_in_json_and_never_a_number() -> None:
    truth = one_object() | {"annotations": []}
    text = json.loads(json.dumps(evaluate(truth, {1: one_detection()}, [5]).compute().to_dict(), allow_nan=False))
    assert {text[name] for name in ("mAP", "mAP50", *stat_names())} == {None}
    assert text["best"] == dict.fromkeys(("threshold", "f1", "precision", "recall"))
    (row,) = text["per_class"]
    assert (row["AP"], row["AP50"], row["AR"], row["objects"]) == (None, None, None, 0)


def test_crowd_regions_alone_and_classes_without_objects_leave_scores_undefined() -> None:
    truth = one_object()
    truth["annotations"][0]["iscrowd"] = 1
    assert evaluate(truth, {1: one_detection()}, [5]).compute().map is None
    truth = one_object()
    truth["categories"].append({"id": 7, "name": "other"})
    assert evaluate(truth, {1: one_detection()}, [5, 7], eval_class_ids=[7]).compute().map is None
    assert evaluate(truth, {1: one_detection()}, [5, 7]).compute().map == pytest.approx(1)


def many_objects(count: int) -> tuple[dict, Detections]:
    """One image with this many objects in a grid, and perfect detections of them."""
    corners = [(12.0 * (i % 20), 12.0 * (i // 20)) for i in range(count)]
    truth = one_object()
    truth["annotations"] = [
        {"id": i + 1, "image_id": 1, "category_id": 5, "bbox": [x, y, 10, 10], "area": 100, "iscrowd": 0}
        for i, (x, y) in enumerate(corners)
    ]
    boxes = torch.tensor([[x, y, x + 10, y + 10] for x, y in corners])
    return truth, Detections(boxes, torch.linspace(0.9, 0.5, count), torch.zeros(count, dtype=torch.int64))


@pytest.mark.parametrize(("max_dets", "expected"), [(100, 41 / 101), (249, 100 / 101), (250, 1.0), (500, 1.0)])
def test_max_dets_bounds_what_250_perfect_detections_of_an_image_can_score(max_dets, expected) -> None:
    truth, actual = many_objects(250)
    evaluator = CocoEvaluator(truth, Classes([5]), max_dets=max_dets)
    evaluator.update([1], [actual])
    result = evaluator.compute()
    assert result.map == pytest.approx(expected, abs=1e-9) == result.per_class[0].ap
    assert result.stats[f"ARmax{max_dets}"] == pytest.approx(min(1.0, max_dets / 250)) == result.per_class[0].ar
    assert tuple(result.stats) == stat_names(max_dets) and result.to_dict()["max_dets"] == max_dets == result.max_dets


@pytest.mark.parametrize("max_dets", [1, 5, 10, 11, 30, 500])
def test_every_max_dets_gives_the_numbers_of_pycocotools(max_dets) -> None:
    rng = np.random.default_rng(3)
    truth = ground_truth(rng, 6, [5, 9], 40)
    evaluator = CocoEvaluator(truth, Classes([5, 9]), max_dets=max_dets)
    result = detections(rng, truth, [5, 9], 60, 1000)
    evaluator.update(result, result.values())
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps(truth))
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(evaluator.results_json()), "bbox")
        judge.params.maxDets = [count for count in (1, 10) if count < max_dets] + [max_dets]
        judge.evaluate()
        judge.accumulate()
    precision, recall = judge.eval["precision"], judge.eval["recall"]
    mean = lambda values: values[values > -1].mean()  # noqa: E731
    stats = evaluator.compute().stats
    assert stats["AP"] == pytest.approx(mean(precision[:, :, :, 0, -1]), abs=1e-9)
    assert stats["APs"] == pytest.approx(mean(precision[:, :, :, 1, -1]), abs=1e-9)
    assert stats["ARl"] == pytest.approx(mean(recall[:, :, 3, -1]), abs=1e-9)
    for place, count in enumerate(judge.params.maxDets):
        assert stats[f"ARmax{count}"] == pytest.approx(mean(recall[:, :, 0, place]), abs=1e-9)
