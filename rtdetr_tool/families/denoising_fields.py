"""Fields of `model` about the noise of denoising queries, for the families that train with them."""

from __future__ import annotations

from typing import Any

from rtdetr_tool.spec.fields import INF, field


def label_noise_ratio_field() -> Any:
    return field(
        0.5,
        "Denoising: twice the probability that a query's class is replaced by a random one.",
        min=0.0,
        max=2.0,
        origin="ours",
    )


def box_noise_scale_field() -> Any:
    return field(
        1.0,
        "Denoising: maximum shift of the corners of a query's box, relative to half its side; negatives are shifted 1 "
        "to 2 times as much.",
        min=0.0,
        max=INF,
        origin="ours",
    )
