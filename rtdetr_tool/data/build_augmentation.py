"""Build the steps of training augmentation from `dataset.augmentation`."""

from __future__ import annotations

import logging

from rtdetr_tool.data.albumentations_steps import FIELD, AlbumentationsSteps, log_package
from rtdetr_tool.data.mixing import Mixing
from rtdetr_tool.data.orientation import Orientation
from rtdetr_tool.data.stages import Stages
from rtdetr_tool.data.transforms import TrainTransform
from rtdetr_tool.errors import DataError
from rtdetr_tool.messages import first_of
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.spec import AugmentationSpec

logger = logging.getLogger(__name__)


def train_transform(spec: AugmentationSpec, class_map: ClassMap) -> TrainTransform:
    """The steps of one image."""
    height, width = spec.train_spatial_size
    mirrors = _may_mirror(spec, class_map)
    orientation = Orientation(
        vertical_flip_prob=spec.vertical_flip_prob if mirrors else 0.0,
        rotate90_prob=spec.rotate90_prob,
        rotation_prob=spec.rotation_prob,
        rotation_degrees=spec.rotation_degrees,
    )
    return TrainTransform(
        size=(height, width),
        distortion_prob=spec.distortion_prob,
        iou_crop_prob=spec.iou_crop_prob,
        preserve_aspect_ratio=spec.preserve_aspect_ratio,
        zoom_out_prob=spec.zoom_out_prob,
        flip_prob=spec.flip_prob if mirrors else 0.0,
        scale_jitter_prob=spec.scale_jitter_prob,
        orientation=orientation,
        first=_albumentations(spec, class_map),
    )


def _albumentations(spec: AugmentationSpec, class_map: ClassMap) -> AlbumentationsSteps | None:
    if not spec.albumentations:
        return None
    steps = AlbumentationsSteps(spec.albumentations)
    if steps.changes_geometry and class_map.poses:
        raise DataError(
            f"{FIELD}: only transforms of pixels are supported for keypoints, because flips would not exchange left "
            "and right. Use flip_prob, vertical_flip_prob, rotate90_prob and rotation_prob for the others."
        )
    log_package()
    return steps


def mixing_of(spec: AugmentationSpec) -> Mixing:
    """The steps that combine images."""
    return Mixing(spec.mosaic_prob, spec.mixup_prob, spec.copy_paste_prob)


def stages_of(spec: AugmentationSpec, num_epochs: int | None) -> Stages:
    """The epochs in which steps are used, in a run of `num_epochs`."""
    stop = num_epochs - spec.no_aug_epochs if num_epochs is not None and spec.no_aug_epochs else None
    return Stages(spec.start_epoch, spec.mix_stop_epoch, stop)


def _may_mirror(spec: AugmentationSpec, class_map: ClassMap) -> bool:
    """False (with a warning if it matters) if it is unknown which keypoints are left and right."""
    unknown = [class_map.name_of(index) for index, pose in class_map.poses.items() if pose.swaps is None]
    if unknown and (spec.flip_prob or spec.vertical_flip_prob):
        logger.warning(
            "The names of the keypoints of %s do not show left and right; training without flips. Set "
            "dataset.augmentation.keypoint_flip_pairs (empty = no keypoint has another side)", first_of(unknown, 4),
        )  # fmt: skip
    return not unknown
