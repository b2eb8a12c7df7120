"""The training recipe of D-FINE: the official configurations for COCO as fields of the spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Schedule(NamedTuple):
    """What differs between the variants."""

    epochs: int
    lr: float
    lr_backbone: float
    weight_decay: float
    repeats: int  # of 640 among the sizes of multi-scale training, which are 10 others; 0 = always 640


_SCHEDULES = {
    "n": Schedule(160, 8e-4, 4e-4, 1e-4, 0),
    "s": Schedule(132, 2e-4, 1e-4, 1e-4, 20),
    "m": Schedule(132, 2e-4, 2e-5, 1e-4, 6),
    "l": Schedule(80, 2.5e-4, 1.25e-5, 1.25e-4, 4),
    "x": Schedule(80, 2.5e-4, 2.5e-6, 1.25e-4, 3),
}
_SMALLER, _LARGER = (480, 512, 544, 576, 608), (672, 704, 736, 768, 800)  # sides in multi-scale training


def _fields(schedule: Schedule) -> dict[str, Any]:
    sizes = [*_SMALLER, *[640] * schedule.repeats, *_LARGER] if schedule.repeats else []
    return {
        "train.num_epochs": schedule.epochs,
        "train.optim.lr": schedule.lr,
        "train.optim.lr_backbone": schedule.lr_backbone,
        "train.optim.weight_decay": schedule.weight_decay,
        "train.optim.lr_steps": [500],
        "train.optim.warmup_steps": 500,
        "train.clip_grad_norm": 0.1,
        "train.enable_ema": True,
        "train.ema.decay": 0.9999,
        "train.ema.tau": 1000.0,
        "train.precision": "auto",
        "dataset.augmentation.multi_scales": sizes,
        "dataset.augmentation.distortion_prob": 0.5,
        "dataset.augmentation.zoom_out_prob": 0.5,
        "dataset.augmentation.iou_crop_prob": 0.8,
        "dataset.augmentation.flip_prob": 0.5,
    }


RECIPES: Mapping[str, Mapping[str, Any]] = {name: _fields(schedule) for name, schedule in _SCHEDULES.items()}
