"""`dataset.augmentation.policy`: values for the fields of training augmentation that the spec does not set."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

Values = Mapping[str, Any]

# Every step of augmentation, by its field of `dataset.augmentation`, switched off.
OFF: Values = MappingProxyType(
    {
        "distortion_prob": 0.0,
        "zoom_out_prob": 0.0,
        "iou_crop_prob": 0.0,
        "scale_jitter_prob": 0.0,
        "flip_prob": 0.0,
        "vertical_flip_prob": 0.0,
        "rotate90_prob": 0.0,
        "rotation_prob": 0.0,
        "mosaic_prob": 0.0,
        "mixup_prob": 0.0,
        "copy_paste_prob": 0.0,
    }
)
# Fields of the schedule that the policies in `_SCHEDULED` derive from the number of epochs.
SCHEDULE_FIELDS = ("start_epoch", "mix_stop_epoch", "no_aug_epochs")

_SSD: Values = {"zoom_out_prob": 0.5, "iou_crop_prob": 0.8, "flip_prob": 0.5}
POLICIES: Mapping[str, Values] = MappingProxyType(
    {
        "rtdetr": {**OFF, **_SSD, "distortion_prob": 0.8},
        "rfdetr": {**OFF, "scale_jitter_prob": 0.5, "flip_prob": 0.5},
        "light": {**OFF, "distortion_prob": 0.5, "flip_prob": 0.5},
        "strong": {**OFF, **_SSD, "distortion_prob": 0.8, "mosaic_prob": 0.5, "mixup_prob": 0.15},
        "aerial": {
            **OFF, "distortion_prob": 0.5, "iou_crop_prob": 0.8, "flip_prob": 0.5, "vertical_flip_prob": 0.5,
            "rotate90_prob": 0.75, "rotation_prob": 0.3,
        },
        "deim": {**OFF, **_SSD, "distortion_prob": 0.5, "mosaic_prob": 0.5, "mixup_prob": 0.5},
        "none": OFF,
    }
)  # fmt: skip
_SCHEDULED = ("strong", "deim")


def with_policy(data: Mapping[str, Any], num_epochs: Any) -> dict[str, Any]:
    """Spec data with the values of `dataset.augmentation.policy` for the fields that are not set.

    Args:
        num_epochs: the length of the run, from which some policies derive their schedule.
    """
    dataset = data.get("dataset")
    augmentation = dataset.get("augmentation") if isinstance(dataset, Mapping) else None
    if not isinstance(dataset, Mapping) or not isinstance(augmentation, Mapping):
        return dict(data)
    values = policy_values(augmentation.get("policy"), num_epochs)
    return {**data, "dataset": {**dataset, "augmentation": {**values, **augmentation}}}


def policy_values(name: Any, num_epochs: Any) -> dict[str, Any]:
    """The values of a policy; none for an unknown name, which is a separate error."""
    if not isinstance(name, str) or name not in POLICIES:
        return {}
    values = dict(POLICIES[name])
    if name in _SCHEDULED and isinstance(num_epochs, int) and num_epochs > 0:
        values |= dict(zip(SCHEDULE_FIELDS, schedule_of(name, num_epochs), strict=True))
    return values


def schedule_of(name: str, num_epochs: int) -> tuple[int, int | None, int]:
    """`SCHEDULE_FIELDS` of a policy for a run of this many epochs.

    Those of `deim` are the epochs of the official configurations (4, 29 and 8 for 58 epochs; 4, 78 and 12 for 160),
    scaled down for shorter runs.
    """
    last = min(12, round(0.14 * num_epochs))
    if name == "strong":
        return 0, None, last
    first = min(4, round(0.07 * num_epochs))
    return first, first + (num_epochs - last) // 2, last
