"""The `train.supernet` section: train sub-detectors of several sizes that share their weights."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from rtdetr_tool.spec.fields import field


@dataclass(frozen=True)
class SupernetSpec:
    """Train a family of detectors with shared weights: each step trains one of them, drawn at random."""

    enabled: bool = field(
        False,
        "Train one of the combinations below in each step, with the same weights; `rtdetr automl` with "
        "automl.supernet_checkpoint scores all of them afterwards. The values of the model itself always are among the "
        "choices.",
        origin="ours",
    )
    resolution: list[Any] = field(
        [],
        "Sizes of the input, each a side or [height, width], in addition to dataset.augmentation.eval_spatial_size; "
        "instead of dataset.augmentation.multi_scales. Combinations whose size is not a multiple of what the model "
        "requires are skipped.",
        origin="ours",
    )
    decoder_layers: list[int] = field(
        [], "Numbers of decoder layers that run, which are the first ones of the model.", min=1, origin="ours"
    )
    num_queries: list[int] = field([], "Numbers of queries, at most those of the model.", min=1, origin="ours")
    num_windows: list[int] = field([], "RF-DETR: windows per side of the image.", min=1, origin="ours")
    patch_size: list[int] = field(
        [],
        "RF-DETR: sides of the patches, to which the patch embedding is resampled.",
        min=1,
        unit="pixels",
        origin="ours",
    )


RESOLUTION = "resolution"
CHOICES = tuple(entry.name for entry in fields(SupernetSpec) if entry.name != "enabled")
NUMBERS = tuple(name for name in CHOICES if name != RESOLUTION)
