"""The training recipe of RF-DETR: the defaults of Roboflow's package (rfdetr 1.11) as fields of the spec."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

RECIPE: Mapping[str, Any] = MappingProxyType(
    {
        "train.num_epochs": 100,
        "train.optim.lr": 1e-4,
        "train.optim.lr_backbone": 1.5e-4,
        "train.optim.lr_layer_decay": 0.8,
        "train.optim.lr_component_decay": 0.7,
        "train.optim.weight_decay": 1e-4,
        "train.optim.decay_vectors": True,
        "train.optim.lr_steps": [100],
        "train.clip_grad_norm": 0.1,
        "train.enable_ema": True,
        "train.ema.decay": 0.993,
        "train.ema.tau": 100.0,
        "train.precision": "auto",
        "train.activation_checkpoint": False,
        "train.sync_bn": False,
        "dataset.workers": 2,
        "dataset.augmentation.distortion_prob": 0.0,
        "dataset.augmentation.zoom_out_prob": 0.0,
        "dataset.augmentation.iou_crop_prob": 0.0,
        "dataset.augmentation.scale_jitter_prob": 0.5,
        "dataset.augmentation.flip_prob": 0.5,
        "evaluate.max_dets": 500,
        "wandb.enable": False,
    }
)
