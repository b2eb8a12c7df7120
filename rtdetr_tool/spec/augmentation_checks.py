"""Checks of `dataset.augmentation` against the length of the run and the model."""

from __future__ import annotations

from collections.abc import Iterator

from rtdetr_tool.catalog import KEYPOINTS
from rtdetr_tool.spec.experiment import ExperimentSpec


def augmentation_problems(spec: ExperimentSpec) -> Iterator[str]:
    """One line for each contradiction."""
    augmentation, epochs, name = spec.dataset.augmentation, spec.train.num_epochs, "dataset.augmentation"
    without = augmentation.start_epoch + augmentation.no_aug_epochs
    if without > epochs:
        yield (
            f"{name}.start_epoch, {name}.no_aug_epochs: together {without} epochs; expected at most train.num_epochs "
            f"({epochs})"
        )
    for index, entry in enumerate(augmentation.albumentations or ()):
        if not isinstance(entry.get("__class_fullname__"), str):
            yield (
                f"{name}.albumentations[{index}]: required key __class_fullname__ is missing; expected the name of a "
                "transform, such as {__class_fullname__: GaussNoise, p: 0.3}"
            )
    if augmentation.copy_paste_prob and spec.model.predicts == KEYPOINTS:
        yield (
            f"{name}.copy_paste_prob: {augmentation.copy_paste_prob} is invalid for a model of keypoints, because "
            "masks and keypoints are not read together; expected 0"
        )
