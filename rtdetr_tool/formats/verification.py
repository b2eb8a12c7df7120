"""Verify a file against the detector in PyTorch on real images, before it is moved into place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rtdetr_tool.data.pixels import RGB, PixelFormat
from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.formats.comparison import Difference, compare_on
from rtdetr_tool.formats.images import image_source_of, synthetic_images
from rtdetr_tool.formats.precision.cost import detection_difference, detections
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.ops.structures import Predictions
from rtdetr_tool.ops.tf32 import exact_float32
from rtdetr_tool.spec import DatasetSpec

logger = logging.getLogger(__name__)

MIN_IMAGES = 4  # minimum number of compared images
DYNAMIC_BATCHES = (1, 3)  # batch sizes for a file with a dynamic batch

Predict = Callable[[Tensor], Predictions]
Features = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class FeatureDifference:
    """The largest difference of a value, relative to the largest value of its map."""

    batch: int
    images: int
    relative: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Reference:
    """A deployed detector in PyTorch, and images [N, C, H, W] 0..1, complete batches of every compared size."""

    detector: Detector
    images: Tensor
    origin: str  # of the images
    batches: tuple[int, ...]

    @exact_float32()
    @torch.inference_mode()
    def predict(self, images: Tensor) -> Predictions:
        predictions = self.detector(images.to(self._device))
        on_host: Predictions = predictions.map(lambda tensor: tensor.float().cpu())
        return on_host

    @exact_float32()
    @torch.inference_mode()
    def features(self, images: Tensor) -> list[Tensor]:
        return [level.float().cpu() for level in self.detector.features(images.to(self._device))]

    @property
    def _device(self) -> torch.device:
        return next(self.detector.parameters()).device


def build_reference(
    detector: Detector, dataset: DatasetSpec, size: tuple[int, int], batch: int | None, pixels: PixelFormat = RGB
) -> Reference:
    """A reference on images of the spec's data, or synthetic ones; `batch` None is dynamic."""
    batches = (batch,) if batch else DYNAMIC_BATCHES
    count = max(batches) * -(-MIN_IMAGES // max(batches))  # complete batches
    augmentation = dataset.augmentation
    spatial_size, keep_ratio = augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio
    source = image_source_of(dataset, None, spatial_size, keep_ratio, pixels=pixels)
    if source is None:
        logger.warning("The spec has no folder with images; using synthetic images for the comparison")
        return Reference(detector, synthetic_images(count, size, detector.num_channels), "drawn", batches)
    images = source.load(count)
    images = images.repeat(-(-count // len(images)), 1, 1, 1)[:count]
    return Reference(detector, images, source.origin, batches)


def verify_detections(reference: Reference, predict: Predict, tolerance: float, name: Path) -> list[Difference]:
    """Check that the detections are those of PyTorch at every batch size.

    Raises:
        RtdetrError: the objects differ, or scores and boxes differ by more than `tolerance`.
    """
    differences = [
        compare_on(reference.images, each, reference.predict, predict, tolerance) for each in reference.batches
    ]
    for difference in differences:
        logger.info(
            "Compared with PyTorch at batch %d: %d images, %d detections, largest difference of a score %.1e, of a "
            "relative box coordinate %.1e",
            difference.batch, difference.images, difference.detections, difference.score, difference.box,
        )  # fmt: skip
        if difference.mask:
            logger.info("  largest difference of a mask probability %.1e", difference.mask)
        if difference.keypoint:
            logger.info("  largest difference of a keypoint coordinate or probability %.1e", difference.keypoint)
        if difference.ambiguous:
            logger.info("  Skipping %d images: noise below a gray level changes their detections", difference.ambiguous)
    wrong = [difference for difference in differences if not difference.within(tolerance)]
    if any(difference.images == 0 for difference in wrong):
        raise RtdetrError(
            f"{name} was not written: its detections differ from PyTorch's, and on every image noise below a gray "
            f"level changes PyTorch's detections by more than export.tolerance ({tolerance:.1e})"
        )
    if wrong:
        worst = wrong[0]
        raise RtdetrError(
            f"{name} was not written: its detections differ from PyTorch's (batch {worst.batch}: "
            f"score {worst.score:.1e}, box {worst.box:.1e}, mask {worst.mask:.1e}, "
            f"keypoint {worst.keypoint:.1e}, {worst.unmatched} without a counterpart; export.tolerance is "
            f"{tolerance:.1e})"
        )
    return differences


def verify_features(reference: Reference, features: Features, tolerance: float, name: Path) -> list[FeatureDifference]:
    """Check that feature maps are those of PyTorch at every batch size, within `tolerance`; RtdetrError otherwise."""
    differences = []
    for batch in reference.batches:
        worst = 0.0
        for part in reference.images.split(batch):
            for expected, actual in zip(reference.features(part), features(part), strict=True):
                worst = max(worst, float((expected - actual).abs().max() / expected.abs().max().clamp(min=1e-6)))
        differences.append(FeatureDifference(batch, len(reference.images), worst))
        logger.info("Compared with PyTorch at batch %d: largest relative difference of a feature %.1e", batch, worst)
        if not worst <= tolerance:
            raise RtdetrError(
                f"{name} was not written: its features differ from PyTorch's (batch {batch}: by {worst:.1e} of the "
                f"largest value; export.tolerance is {tolerance:.1e})"
            )
    return differences


def change_of_detections(reference: Reference, predict: Predict) -> tuple[Difference, float]:
    """The change of detections in lower precision: the largest differences, and the cost (0 = none, 1 = nothing in
    common) as in `precision`, mean over the images."""
    batch = reference.batches[0]
    difference = compare_on(reference.images, batch, reference.predict, predict, float("inf"))
    costs = []
    for part in reference.images.split(batch):
        pairs = zip(_by_image(reference.predict(part)), _by_image(predict(part)), strict=True)
        costs += [detection_difference(detections(*expected), detections(*actual)) for expected, actual in pairs]
    return difference, float(np.mean(costs))


def _by_image(predictions: Predictions) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(predictions.logits.cpu().numpy(), predictions.boxes.cpu().numpy(), strict=True))
