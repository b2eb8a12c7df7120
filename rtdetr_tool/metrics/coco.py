"""COCO detection metrics, computed with hotcoco; the numbers equal those of pycocotools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from typing import Any

import hotcoco
import numpy as np
from numpy.typing import NDArray

from rtdetr_tool.errors import DataError
from rtdetr_tool.messages import first_of
from rtdetr_tool.metrics.coco_results import result_rows, results_text
from rtdetr_tool.metrics.coco_stats import IOU_50, coco_stats, curves, defined_mean
from rtdetr_tool.metrics.image_matches import ImageDetections, ImageMatches, match_images
from rtdetr_tool.metrics.keypoints import keypoint_counts, keypoint_stats
from rtdetr_tool.metrics.operating_point import ClassDetections, best_operating_point
from rtdetr_tool.metrics.result import MAX_DETS, ClassResult, CocoResult, detection_limits
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.keypoints import coco_points
from rtdetr_tool.ops.masks import encode, encode_batch, rasterize, to_coco
from rtdetr_tool.ops.structures import Detections, InstanceMasks

_NONE = (np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool))


class CocoEvaluator:
    """Collects detections image by image and scores them against COCO ground truth.

    Args:
        ground_truth: plain COCO dict (`dataset.coco_ground_truth()`). Annotations are renumbered from 1, because
            annotations with equal ids would count as one, and because pycocotools stores "no match" as id 0 and so
            counts an annotation with that id as missed.
        class_map: detections of a class index without a category are dropped.
        eval_class_ids: category ids to evaluate; None means all.
        max_dets: number of detections per class and image that count, those with the highest scores; 100 in COCO.
        sigmas: of keypoints, see `metrics.keypoints`.
    """

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        class_map: ClassMap,
        eval_class_ids: Sequence[int] | None = None,
        max_dets: int = MAX_DETS,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        self.class_map, self.max_dets, self.sigmas = class_map, max_dets, sigmas
        self.images = list(ground_truth["images"])
        self.categories = list(ground_truth["categories"])
        known = {category["id"]: category["name"] for category in self.categories}
        self.category_ids = sorted(known) if eval_class_ids is None else sorted(set(eval_class_ids))
        unknown = [i for i in self.category_ids if i not in known]
        if unknown:
            categories = first_of([f"{number} ({name})" for number, name in known.items()], 12)
            raise DataError(
                f"dataset.eval_class_ids: {unknown} is invalid; expected category ids of the dataset: {categories}"
            )
        self.annotations = [{**a, "id": number} for number, a in enumerate(ground_truth["annotations"], start=1)]
        self._with_masks = any(annotation.get("segmentation") for annotation in self.annotations)
        self._with_keypoints = bool(keypoint_counts({"annotations": self._selected()}))
        self._image_numbers = _numbers(image["id"] for image in self.images)
        self._category_numbers = _numbers(known)
        self._sizes = {image["id"]: (image["height"], image["width"]) for image in self.images if "height" in image}
        self._detections: dict[int, ImageDetections] = {}  # by image id
        ids = [class_map.category_id_of(index) for index in range(max(class_map.num_classes, 1))]
        self._category_of_index = np.array([np.nan if i is None else i for i in ids], dtype=np.float64)

    def update(self, image_ids: Iterable[int], detections: Iterable[Detections]) -> None:
        """Add the detections of some images; an image that was added before keeps its first detections."""
        rows: dict[int, NDArray[np.float64]] = {}
        masks: dict[int, InstanceMasks] = {}
        shapes: dict[int, list[dict[str, Any]]] = {}
        for image_id, image_detections in zip(map(int, image_ids), detections, strict=True):
            if image_id not in self._image_numbers:
                raise DataError(f"Image id {image_id} is not in the ground truth.")
            if image_id in self._detections or image_id in rows:
                continue
            all_rows = self._rows(image_detections)
            keep = ~np.isnan(all_rows[:, 5])
            rows[image_id] = all_rows[keep]
            if image_detections.masks is not None and self._with_masks:
                masks[image_id] = image_detections.masks.select(keep.tolist())
            elif image_detections.keypoints is not None and self._with_keypoints:
                points = coco_points(image_detections.select(keep.tolist()))
                shapes[image_id] = [{"keypoints": values} for values in points]
        for (image_id, selected), encoded in zip(masks.items(), encode_batch(list(masks.values())), strict=True):
            shapes[image_id] = [{"segmentation": to_coco(counts, selected.size)} for counts in encoded]
        for image_id, kept in rows.items():
            self._detections[image_id] = ImageDetections(kept, shapes.get(image_id))

    def _rows(self, detections: Detections) -> NDArray[np.float64]:
        """[K, 6] x, y, width, height (pixels), score, and category id, NaN if the class index has none."""
        boxes = detections.boxes.detach().cpu().double().numpy().reshape(-1, 4)
        scores = detections.scores.detach().cpu().double().numpy()
        labels = detections.labels.detach().cpu().numpy().astype(np.int64)
        ids = np.full(len(labels), np.nan)
        inside = (labels >= 0) & (labels < len(self._category_of_index))
        ids[inside] = self._category_of_index[labels[inside]]
        return np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2], scores, ids])

    # Merging the ranks of a distributed run

    def state(self) -> dict[int, ImageDetections]:
        """The detections collected by this process, as plain picklable data."""
        return dict(self._detections)

    def merge(self, states: Iterable[Mapping[int, ImageDetections]]) -> None:
        """Add the states of other processes; an image that several processes saw counts once."""
        for state in states:
            for image_id, detections in state.items():
                self._detections.setdefault(image_id, detections)

    # Results

    def detections_of(self, image_id: int, threshold: float = 0.0) -> ImageDetections:
        """An image's detections from `threshold` on."""
        rows, shapes = self._detections[image_id]
        keep = rows[:, 4] >= threshold
        return ImageDetections(rows[keep], shapes and list(compress(shapes, keep)))

    @property
    def missing_images(self) -> list[int]:
        """Ids of the images without an `update`; `compute` counts their objects as missed."""
        return [image["id"] for image in self.images if image["id"] not in self._detections]

    def results_json(self) -> list[dict[str, Any]]:
        """The detections in COCO's results format."""
        return result_rows(self._detections)

    def results_text(self) -> str:
        """The detections as the text of a COCO results file."""
        return results_text(self._detections)

    def compute(self) -> CocoResult:
        """Compute the metrics of all detections so far, over all images of the ground truth."""
        precision, recall = curves(self.evaluation())
        count = sum(len(detections.rows) for detections in self._detections.values())
        masks = keypoints = None
        if any(detections.shapes is not None for detections in self._detections.values()):
            results = [self._numbered(result) for result in self.results_json()]
            if self._with_keypoints:
                keypoints = keypoint_stats(self._truth(self._selected()), results, self.sigmas)
            else:
                masks = coco_stats(*curves(self._evaluated(self._true_masks(), results, "segm")), self.max_dets)
        detections = self.class_detections()
        return CocoResult(
            coco_stats(precision, recall, self.max_dets), self._per_class(precision, recall, detections),
            len(self.images), count, best_operating_point(detections), masks, self.max_dets, keypoints,
        )  # fmt: skip

    def _selected(self) -> list[dict[str, Any]]:
        """The annotations of the categories to evaluate."""
        return [annotation for annotation in self.annotations if annotation["category_id"] in self.category_ids]

    def evaluation(self) -> Any:
        """The boxes so far as hotcoco's evaluation, accumulated; its categories are numbered from 1 in id order."""
        return self._evaluated(self.annotations, self._table(), "bbox")

    def number_of(self, category_id: int) -> int:
        """The number of a category in hotcoco's evaluations."""
        return self._category_numbers[category_id]

    def confusion_at(self, threshold: float) -> Any:
        """hotcoco's evaluation of the detections from `threshold` on, without crowd regions and detections on them."""
        kept = {
            image_id: rows[(rows[:, 4] >= threshold) & match.counted]
            for (image_id, (rows, _)), match in zip(self._detections.items(), self.matches(), strict=True)
        }
        return self._evaluated([a for a in self.annotations if not a.get("iscrowd")], self._table(kept), "bbox")

    def _evaluated(self, annotations: Any, results: Any, kind: str) -> Any:
        """hotcoco's evaluation, accumulated.

        `results` have consecutive numbers from 1 instead of image and category ids, in the order of the ids: hotcoco
        does not support negative ids, and large ids would lose digits in a table of floats.
        """
        images, categories = self._image_numbers, self._category_numbers
        truth = hotcoco.COCO(self._truth(annotations))
        evaluation = hotcoco.COCOeval(truth, truth.load_res(results), kind)
        evaluation.params.cat_ids = [categories[category_id] for category_id in self.category_ids]
        evaluation.params.img_ids = list(images.values())
        evaluation.params.max_dets = detection_limits(self.max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation

    def _truth(self, annotations: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """COCO ground truth with the numbers that `_evaluated` uses."""
        images, categories = self._image_numbers, self._category_numbers
        return {
            "images": [{**image, "id": images[image["id"]]} for image in self.images],
            "annotations": [self._numbered(annotation) for annotation in annotations],
            "categories": [{**category, "id": categories[category["id"]]} for category in self.categories],
        }

    def _numbered(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        image, category = self._image_numbers[entry["image_id"]], self._category_numbers[entry["category_id"]]
        return {**entry, "image_id": image, "category_id": category}

    def _true_masks(self) -> list[dict[str, Any]]:
        """The annotations; one without a mask becomes an ignore region with the shape of its box."""
        return [a if a.get("segmentation") else self._ignored(a) for a in self.annotations]

    def _ignored(self, annotation: Mapping[str, Any]) -> dict[str, Any]:
        size = self._sizes[annotation["image_id"]]
        x, y, width, height = annotation["bbox"]
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        counts = rasterize([corners], *size) or encode(np.zeros(size))
        return {**annotation, "iscrowd": 1, "segmentation": to_coco(counts, size)}

    def matches(self) -> list[ImageMatches]:
        """Each image's detections matched at IoU 0.5, by a separate matching: reading hotcoco's takes too long."""
        return match_images(self._detections, self.annotations, self.category_ids)

    def class_detections(self) -> dict[int, ClassDetections]:
        """The matched detections by category id."""
        parts = [(m.scores[m.counted], m.categories[m.counted], m.correct[m.counted]) for m in self.matches()]
        columns = zip(*parts, strict=True)
        scores, categories, correct = (np.concatenate(column) for column in columns) if parts else _NONE
        counts = self.objects()
        in_class = {i: categories == i for i in self.category_ids}
        return {i: ClassDetections(scores[mask], correct[mask], counts[i]) for i, mask in in_class.items()}

    def objects(self) -> dict[int, int]:
        """Number of objects by category id, without crowd regions."""
        objects = dict.fromkeys(self.category_ids, 0)
        for annotation in self.annotations:
            if annotation["category_id"] in objects and not annotation.get("iscrowd"):
                objects[annotation["category_id"]] += 1
        return objects

    def _table(self, rows_of: Mapping[int, NDArray[np.float64]] | None = None) -> NDArray[np.float64]:
        """Rows [N, 7] of image number, x, y, width, height, score, category number; by default all detections."""
        if rows_of is None:
            rows_of = {image_id: rows for image_id, (rows, _) in self._detections.items()}
        detections = sorted(rows_of.items())
        tables = [np.column_stack([np.full(len(rows), self._image_numbers[i]), rows]) for i, rows in detections]
        table = np.concatenate([np.zeros((0, 7)), *tables])
        table[:, 6] = np.searchsorted(np.array(list(self._category_numbers), dtype=np.float64), table[:, 6]) + 1
        return table

    def _per_class(
        self, precision: NDArray[np.float64], recall: NDArray[np.float64], detections: Mapping[int, ClassDetections]
    ) -> list[ClassResult]:
        names = {category["id"]: category["name"] for category in self.categories}
        index_of = {int(i): index for index, i in enumerate(self._category_of_index.tolist()) if i == i}
        objects = self.objects()
        return [
            ClassResult(
                index=index_of.get(category_id),
                category_id=category_id,
                name=names[category_id],
                ap=defined_mean(precision[:, :, k, 0, -1]),
                ap50=defined_mean(precision[IOU_50, :, k, 0, -1]),
                ar=defined_mean(recall[:, k, 0, -1]),
                objects=objects[category_id],
                best=best_operating_point({category_id: detections[category_id]}),
            )
            for k, category_id in enumerate(self.category_ids)
        ]


def _numbers(ids: Iterable[int]) -> dict[int, int]:
    """Consecutive numbers from 1 for the ids, in their order."""
    return {id_: number for number, id_ in enumerate(sorted(set(ids)), start=1)}
