"""The module that is traced: a detector for inference with named inputs and outputs.

Shape legend: B batch, H, W input size, Q queries, C classes, K detections.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetr_tool.catalog import BOXES, KEYPOINTS, LAYOUTS, MASKS, PREDICTS, Layout
from rtdetr_tool.families import Family
from rtdetr_tool.formats.graph_interface import FEATURES
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.ops.boxes import cxcywh_to_xyxy
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.pixels import denormalize
from rtdetr_tool.ops.postprocess import select_top
from rtdetr_tool.ops.structures import Predictions

DETECTION_OUTPUTS = ("boxes", "scores", "labels")
NEVER = -100.0  # logit of an added background: a score of 0 in every precision


class ExportModel(nn.Module):
    """images [B, C, H, W] -> the tensors of a layout, by name: class logits [B, Q, C] before the sigmoid, boxes
    [B, Q, 4] cxcywh 0..1, and mask logits [B, Q, h, w] or keypoints [B, Q, S, 8] if the detector predicts them.

    With `num_select` also the best K detections, best first: boxes [B, K, 4] xyxy in pixels of the input, clipped to
    it, scores [B, K] 0..1, labels [B, K] int32 class indices. The raw outputs remain, so that every file can be scored.

    Args:
        layout: names, and whether the images are normalized instead of RGB 0..1.
        add_background: append a class logit that no detection ever has.
    """

    def __init__(
        self,
        detector: Detector,
        num_select: int | None = None,
        layout: Layout = LAYOUTS["tao"],
        add_background: bool = False,
    ) -> None:
        super().__init__()
        self.detector = detector.deploy()
        self.num_select, self.layout, self.add_background = num_select, layout, add_background
        self.predicts = detector.predicts

    @property
    def input_name(self) -> str:
        return self.layout.input

    @property
    def output_names(self) -> tuple[str, ...]:
        unused = [kind for kind in PREDICTS if kind not in (BOXES, self.predicts)]
        raw = tuple(name for field, name in self.layout.outputs.items() if field not in unused)
        return raw if self.num_select is None else raw + DETECTION_OUTPUTS

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        predictions = self.detector(denormalize(images) if self.layout.normalised else images)
        fields = {"logits": predictions.logits.float(), "boxes": predictions.boxes.float()}
        if self.add_background:
            fields["logits"] = F.pad(fields["logits"], (0, 1), value=NEVER)
        if self.predicts == MASKS:
            fields[MASKS] = predictions.masks.float()
        elif self.predicts == KEYPOINTS:
            fields[KEYPOINTS] = predictions.keypoints.values.float()
        raw = tuple(fields[field] for field in self.layout.outputs if field in fields)
        if self.num_select is None:
            return raw
        return *raw, *pixel_detections(predictions, self.num_select, (images.shape[-2], images.shape[-1]))


class ExportFeatures(nn.Module):
    """images [B, C, H, W] -> the maps [B, D, h, w] that the decoder reads: `features`, `features_1`, ..., as in the
    export of RF-DETR's package; `size` is (H, W)."""

    def __init__(self, detector: Detector, layout: Layout, size: tuple[int, int]) -> None:
        super().__init__()
        self.detector, self.layout = detector.deploy().eval(), layout
        self.detector.decoder = nn.Identity()  # never runs, so its weights are not exported
        with torch.no_grad():
            images = torch.zeros(1, detector.num_channels, *size, device=next(detector.parameters()).device)
            levels = len(self.detector.features(images))
        self.output_names = tuple(FEATURES if index == 0 else f"{FEATURES}_{index}" for index in range(levels))

    @property
    def input_name(self) -> str:
        return self.layout.input

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.detector.features(denormalize(images) if self.layout.normalised else images)
        return tuple(level.float() for level in maps)


def lacks_background(layout: Layout, family: Family, class_map: ClassMap | None) -> bool:
    """Whether the layout requires a background as its last class score, and the model has none."""
    return layout.background and not family.has_background(None if class_map is None else class_map.names)


def pixel_detections(predictions: Predictions, num_select: int, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [B, K, 4] xyxy pixels of an input of `size` (height, width), scores [B, K], labels [B, K] int32."""
    scores, labels, boxes = select_top(predictions, num_select)
    limit = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    boxes = torch.minimum((cxcywh_to_xyxy(boxes) * limit).clamp(min=0), limit)
    return boxes, scores, labels.int()
