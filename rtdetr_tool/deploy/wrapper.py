"""What is traced: a detector for inference with named tensors in and out.

Shape legend: B batch, H, W input size, Q queries, C classes, K detections.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtdetr_tool.checkpoints.onnx_file import BOXES, LOGITS
from rtdetr_tool.ops.boxes import cxcywh_to_xyxy
from rtdetr_tool.ops.postprocess import select_top
from rtdetr_tool.ops.structures import Predictions

RAW_OUTPUTS = (LOGITS, BOXES)
DETECTION_OUTPUTS = ("boxes", "scores", "labels")


class ExportModel(nn.Module):
    """images [B, 3, H, W] RGB 0..1 -> pred_logits [B, Q, C] before the sigmoid, pred_boxes [B, Q, 4] cxcywh 0..1.

    With `num_select` also the best K detections, best first: boxes [B, K, 4] xyxy in pixels of the input, clipped to
    it, scores [B, K] 0..1, labels [B, K] int32 class indices. The raw outputs stay, so that every file can be scored.
    """

    def __init__(self, detector: nn.Module, num_select: int | None = None) -> None:
        super().__init__()
        self.detector = detector.deploy()
        self.num_select = num_select

    @property
    def output_names(self) -> tuple[str, ...]:
        return RAW_OUTPUTS if self.num_select is None else RAW_OUTPUTS + DETECTION_OUTPUTS

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.detector(images)
        raw = found.logits.float(), found.boxes.float()
        if self.num_select is None:
            return raw
        return *raw, *pixel_detections(found, self.num_select, (images.shape[-2], images.shape[-1]))


def pixel_detections(found: Predictions, num_select: int, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [B, K, 4] xyxy pixels of an input of `size` (height, width), scores [B, K], labels [B, K] int32."""
    scores, labels, boxes = select_top(found, num_select)
    limit = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    boxes = torch.minimum((cxcywh_to_xyxy(boxes) * limit).clamp(min=0), limit)
    return boxes, scores, labels.int()
