"""Records as COCO ground truth, for scoring."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.masks import UNKNOWN, to_coco


def coco_ground_truth(records: Iterable[ImageRecord], class_map: ClassMap) -> dict[str, list[dict[str, Any]]]:
    """The records as a plain COCO dict, with the original image and category ids, repaired boxes and crowd regions.

    Annotations are renumbered from 1, because pycocotools treats an annotation with id 0 as unmatched.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    id_of = {entry.index: entry.category_id for entry in class_map.entries}
    for record in records:
        images.append({"id": record.image_id, "file_name": record.path, "width": record.width, "height": record.height})
        columns = (record.boxes.tolist(), record.labels.tolist(), record.iscrowd.tolist(), record.area.tolist())
        masks = record.masks or [UNKNOWN] * len(record)
        for (x1, y1, x2, y2), label, crowd, area, counts in zip(*columns, masks, strict=True):
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
            annotations.append(annotation)
    categories = [{"id": entry.category_id, "name": entry.name} for entry in class_map.entries]
    return {"images": images, "annotations": annotations, "categories": categories}
