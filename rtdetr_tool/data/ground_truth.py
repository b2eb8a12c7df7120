"""Records as COCO ground truth, for scoring."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.ops.classes import ClassEntry, ClassMap
from rtdetr_tool.ops.masks import UNKNOWN, to_coco


def coco_ground_truth(records: Iterable[ImageRecord], class_map: ClassMap) -> dict[str, list[dict[str, Any]]]:
    """The records as a plain COCO dict, with the original image and category ids, repaired boxes and crowd regions.

    Annotations are renumbered from 1, because pycocotools treats an annotation with id 0 as unmatched.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    poses = class_map.poses
    id_of = {entry.index: entry.category_id for entry in class_map.entries}
    for record in records:
        images.append({"id": record.image_id, "file_name": record.path, "width": record.width, "height": record.height})
        columns = (record.boxes.tolist(), record.labels.tolist(), record.iscrowd.tolist(), record.area.tolist())
        masks = record.masks or [UNKNOWN] * len(record)
        points = [None] * len(record) if record.keypoints is None else record.keypoints
        for (x1, y1, x2, y2), label, crowd, area, counts, pose in zip(*columns, masks, points, strict=True):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": record.image_id,
                "category_id": id_of[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": area,
                "iscrowd": int(crowd),
            }
            if counts != UNKNOWN:
                annotation["segmentation"] = to_coco(counts, (record.height, record.width))
            if pose is not None and label in poses:
                keypoints = pose[: len(poses[label].names)]
                annotation |= {
                    "keypoints": keypoints.ravel().tolist(),
                    "num_keypoints": int((keypoints[:, 2] > 0).sum()),
                }
            annotations.append(annotation)
    categories = [_category(entry) for entry in class_map.entries]
    return {"images": images, "annotations": annotations, "categories": categories}


def _category(entry: ClassEntry) -> dict[str, Any]:
    category = {"id": entry.category_id, "name": entry.name}
    if entry.pose is None:
        return category
    described = entry.pose.to_dict()
    return {**category, "keypoints": described["keypoints"], "skeleton": described["skeleton"]}
