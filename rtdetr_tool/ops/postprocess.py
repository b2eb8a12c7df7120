"""From raw predictions to detections: sigmoid, top-k over queries and classes, pixels; no NMS, as in DETR."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rtdetr_tool.ops.boxes import cxcywh_to_xyxy
from rtdetr_tool.ops.keypoints import of_detections
from rtdetr_tool.ops.structures import Detections, InstanceKeypoints, InstanceMasks, Predictions, Target


def select_top(predictions: Predictions, num_select: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `num_select` (query, class) pairs with the highest scores in each image.

    Returns:
        scores [B, K], labels [B, K], boxes [B, K, 4] cxcywh 0..1; K = min(num_select, queries * classes), in descending
        order of score.
    """
    scores, labels, query = top_pairs(predictions.logits, num_select)
    return scores, labels, _boxes_of(predictions, query)


def top_pairs(logits: Tensor, num_select: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels and query indices of the top pairs, [B, K] each."""
    classes = logits.shape[-1]
    scores = logits.float().sigmoid().flatten(1)
    scores, index = scores.topk(min(num_select, scores.shape[1]), dim=1)
    return scores, index % classes, index // classes


def _boxes_of(predictions: Predictions, query: Tensor) -> Tensor:
    return predictions.boxes.float().gather(1, query[..., None].expand(-1, -1, 4))


def postprocess(predictions: Predictions, targets: Sequence[Target], num_select: int) -> list[Detections]:
    """Detections of each image in pixels of the original image, without padding and clipped to the image.

    Only `box_scale` and `original_size` of the targets are used. The result stays on the device of `predictions`.
    """
    return split_rows(detection_rows(predictions, targets, num_select), predictions, targets)


def detection_rows(predictions: Predictions, targets: Sequence[Target], num_select: int) -> Tensor:
    """The detections of a batch as one tensor, which a single copy takes to the host.

    Columns of [B, K, 7 + 6 P]: xyxy, score, label, query, and for each of P keypoints x, y, probability and precision.
    Rows are in descending order of score. Labels and queries are exact in float32 up to 2^24.
    """
    scores, labels, query = top_pairs(predictions.logits, num_select)
    boxes = _boxes_of(predictions, query)
    heights_widths = [target.original_size for target in targets]
    frame = torch.tensor(
        [[target.box_scale * 2 for target in targets], [(width, height) * 2 for height, width in heights_widths]],
        dtype=boxes.dtype,
    )
    scale, limit = frame.to(boxes.device, non_blocking=True).unbind()  # [B, 4] x, y, x, y each
    boxes = (cxcywh_to_xyxy(boxes) * scale[:, None]).clamp(min=0)
    boxes = torch.minimum(boxes, limit[:, None])
    if predictions.keypoints is None:
        return torch.cat([boxes, *(column[..., None].to(boxes.dtype) for column in (scores, labels, query))], dim=-1)
    keypoints, scores = of_detections(predictions.keypoints, query, labels, scores)
    keypoints[..., :2] *= scale[:, None, None, :2]
    columns = [boxes, *(column[..., None].to(boxes.dtype) for column in (scores, labels, query)), keypoints.flatten(2)]
    rows = torch.cat(columns, dim=-1)
    order = scores.argsort(dim=1, descending=True, stable=True)[..., None].expand(-1, -1, rows.shape[-1])
    return rows.gather(1, order)


def split_rows(rows: Tensor, predictions: Predictions, targets: Sequence[Target]) -> list[Detections]:
    """`detection_rows` of a batch as detections of each image, on the device of `rows`.

    Of the predictions only the masks are used; they stay where they are.
    """
    results = [Detections(row[:, :4], row[:, 4], row[:, 5].long()) for row in rows]
    if predictions.masks is not None:
        for detections, logits, row, target in zip(results, predictions.masks, rows, targets, strict=True):
            canvas = (round(target.box_scale[1]), round(target.box_scale[0]))
            detections.masks = InstanceMasks(logits, row[:, 6].long(), canvas, target.original_size)
    if predictions.keypoints is not None:
        counts = predictions.keypoints.counts
        for detections, row, target in zip(results, rows, targets, strict=True):
            points, precision = row[:, 7:].unflatten(1, (-1, 6)).split(3, dim=-1)
            detections.keypoints = InstanceKeypoints(points, precision, counts, target.box_scale)
    return results
