"""The `dataset.augmentation` section: image sizes, and the steps of training augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rtdetr_tool.families import all_families
from rtdetr_tool.spec.augmentation_policy import POLICIES
from rtdetr_tool.spec.fields import INF, Recorded, field


def _from_the_model(text: str = "") -> str:
    """The families with a field that determines image sizes, for the help."""
    sides = [(family.name, side) for family in all_families() for side in family.image_sides]
    return " ".join(f"With model.arch {name}: {text}model.{side}." for name, side in sides)


@dataclass(frozen=True)
class AugmentationSpec:
    """Sizes and training augmentation."""

    policy: str | None = field(
        None,
        "Values for the probabilities below that are not set: rtdetr (TAO's), rfdetr, light, strong, aerial, deim or "
        "none. null = those of the model's training recipe.",
        options=tuple(POLICIES),
        origin="ours",
    )
    multi_scales: list[Any] = field(
        [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
        "Sizes from which one is chosen at random for each training step: a side, or [height, width]; multiples of 32. "
        f"[] = always train_spatial_size. {_from_the_model('around ')}",
        unit="pixels",
    )
    train_spatial_size: list[int] = field(
        [640, 640],
        f"Input size in training, [height, width]; multiples of 32. {_from_the_model()}",
        min=32,
        unit="pixels",
    )
    eval_spatial_size: list[int] = field(
        [640, 640],
        f"Input size in all other commands and in validation, [height, width]; multiples of 32. {_from_the_model()}",
        min=32,
        unit="pixels",
        recorded=Recorded("the input size", "elsewhere", "elsewhere"),
    )
    distortion_prob: float = field(
        0.8,
        "Probability of each photometric distortion (brightness, contrast, saturation, hue, channel order).",
        min=0.0,
        max=1.0,
        automl=True,
    )
    iou_crop_prob: float = field(
        0.8, "Probability of a crop that keeps a minimum IoU with an object.", min=0.0, max=1.0, automl=True
    )
    zoom_out_prob: float = field(
        0.5,
        "Probability of placing the image on a black canvas of 1 to 4 times its sides.",
        min=0.0,
        max=1.0,
        origin="ours",
    )
    flip_prob: float = field(0.5, "Probability of a horizontal flip.", min=0.0, max=1.0, origin="ours")
    vertical_flip_prob: float = field(
        0.0,
        "Probability of a vertical flip, for images without an upper side, such as aerial images.",
        min=0.0,
        max=1.0,
        origin="ours",
    )
    rotate90_prob: float = field(
        0.0,
        "Probability of a rotation by 90, 180 or 270 degrees.",
        min=0.0,
        max=1.0,
        origin="ours",
    )
    rotation_prob: float = field(
        0.0,
        "Probability of a rotation by up to rotation_degrees in either direction.",
        min=0.0,
        max=1.0,
        origin="ours",
    )
    rotation_degrees: float = field(
        10.0, "Largest angle of rotation_prob.", above=0.0, max=45.0, unit="degrees", origin="ours"
    )
    keypoint_flip_pairs: list[int] | None = field(
        None,
        "Keypoints that exchange places in a mirrored image, as a flat list of pairs such as [1, 2, 3, 4]; null = by "
        "left and right in the names of keypoints (without any, images are not mirrored), [] = none.",
        min=0,
        max=999,
        origin="ours",
    )
    scale_jitter_prob: float = field(
        0.0,
        "Probability of training on a random square of the image: the shorter side is scaled to 400, 500 or 600 "
        "pixels, of which the square has 384 to 600. RF-DETR: 0.5.",
        min=0.0,
        max=1.0,
        origin="ours",
    )
    mosaic_prob: float = field(
        0.0,
        "Probability of combining four images around a random center, each at 0.5 to 1.5 times half its size.",
        min=0.0,
        max=1.0,
        origin="ours",
    )
    mixup_prob: float = field(
        0.0,
        "Probability of blending two images with about equal weights; the result has the objects of both.",
        min=0.0,
        max=1.0,
        origin="ours",
    )
    copy_paste_prob: float = field(
        0.0,
        "Probability of pasting objects of another image by their masks; requires annotations with masks.",
        min=0.0,
        max=1.0,
        origin="ours",
    )
    albumentations: list[dict[str, Any]] | None = field(
        None,
        "Transforms of the Albumentations library before all other steps, each a dictionary as its to_dict writes it, "
        'such as {__class_fullname__: GaussNoise, p: 0.3}. `pip install "rtdetr-tool[albumentations]"`.',
        origin="ours",
    )
    start_epoch: int = field(
        0,
        "First epoch (from 0) with all steps; before that, images are only flipped, rotated by 90 degrees and resized.",
        min=0,
        max=INF,
        origin="ours",
    )
    mix_stop_epoch: int | None = field(
        None,
        "First epoch without mosaic, mixup and copy-paste; null = they stop with no_aug_epochs.",
        min=0,
        max=INF,
        origin="ours",
    )
    no_aug_epochs: int = field(
        0,
        "Number of last epochs in which images are only flipped, rotated by 90 degrees and resized, all of them to "
        "eval_spatial_size.",
        min=0,
        max=INF,
        origin="ours",
    )
    preserve_aspect_ratio: bool = field(
        False,
        "Keep the aspect ratio and pad on the right and at the bottom, in training and in all other commands.",
        recorded=Recorded("whether images are padded (true) or stretched (false)"),
    )
