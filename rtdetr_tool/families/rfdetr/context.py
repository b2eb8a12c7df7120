"""The network of a detector with what belongs to it, as Roboflow's package has it in `RFDETR.model`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rtdetr_tool.families.rfdetr.keywords import MODEL_TABLE
from rtdetr_tool.ops.postprocess import postprocess
from rtdetr_tool.ops.structures import Detections, Predictions, Target

if TYPE_CHECKING:
    from rtdetr_tool.families.rfdetr.api_parts import DetectorWithParts


@dataclass(frozen=True)
class PostProcess:
    """Turns predictions into detections in pixels."""

    num_select: int

    def __call__(self, predictions: Predictions, target_sizes: Tensor) -> list[dict[str, Tensor]]:
        """`scores`, `labels` (class indices) and `boxes` (xyxy pixels) of each image, for models with keypoints also
        `keypoints` [K, P, 3] (x, y in pixels, probability) and `keypoint_precision_cholesky` [K, P, 3].

        Args:
            target_sizes: (height, width) of the original images, [B, 2].
        """
        empty = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        targets = [
            Target(*empty, index, (int(height), int(width)), (float(width), float(height)))
            for index, (height, width) in enumerate(target_sizes.tolist())
        ]
        return [_fields(detections) for detections in postprocess(predictions, targets, self.num_select)]


def _fields(detections: Detections) -> dict[str, Tensor]:
    fields = {"scores": detections.scores, "labels": detections.labels, "boxes": detections.boxes}
    if (keypoints := detections.keypoints) is not None:
        fields |= {"keypoints": keypoints.points, "keypoint_precision_cholesky": keypoints.precision}
    return fields


@dataclass(frozen=True)
class ModelContext:
    """A network, `model(images)`, and its settings. Images are [B, C, H, W] 0..1, mostly RGB."""

    model: nn.Module | None  # None for a deployed file
    postprocess: PostProcess
    device: torch.device
    resolution: int
    args: argparse.Namespace  # the fields of `ModelConfig`
    class_names: list[str]


def context_of(detector: DetectorWithParts) -> ModelContext:
    """The context of a detector. It shares the network."""
    settings = {name: getattr(detector.model_config, name) for name in MODEL_TABLE}
    return ModelContext(
        detector.network,
        PostProcess(detector.spec.model.num_select),
        detector.device,
        detector.input_size[0],
        argparse.Namespace(**settings),
        detector.class_names,
    )
