"""Backbone weights from timm, by timm's names."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

from rtdetr_tool.catalog import BACKBONES, TIMM
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.messages import first_line

logger = logging.getLogger(__name__)


def is_timm(source: str) -> bool:
    """Whether `model.pretrained_backbone_path` names weights of timm: `timm` or `timm/<tag>`."""
    return source == "timm" or source.startswith(TIMM)


def from_timm(name: str) -> dict[str, Tensor]:
    """Weights by timm's name for them, from timm's cache or the network."""
    import timm

    try:
        network: Any = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the network, the hub and timm's registry raise many types
        raise CheckpointError(
            f"model.pretrained_backbone_path: timm could not load the weights of {name!r} "
            f"({type(error).__name__}: {first_line(error)}). Without a network, download the file elsewhere and give "
            "its path."
        ) from error
    license = network.pretrained_cfg.get("license")
    logger.info("%s: weights from timm, license %s", name, license or "not stated")
    weights: dict[str, Tensor] = network.state_dict()
    return weights


def timm_weights(source: str, backbone: str) -> str:
    """timm's name of the weights for `source` (`timm` or `timm/<tag>`): `name.tag`, or `name` for timm's default.

    Raises:
        CheckpointError: timm does not have the backbone.
    """
    tag = source.removeprefix("timm").removeprefix("/")
    if backbone.startswith(TIMM):
        name = backbone.removeprefix(TIMM)
        if not tag:
            return name
        name = name.partition(".")[0]
    else:
        row = BACKBONES[backbone]
        if row.weights is None or not row.weights.startswith(TIMM):
            advice = f"give the path of a file ({row.weights})" if row.weights else "none are published"
            raise CheckpointError(f"model.pretrained_backbone_path: timm has no weights of {backbone}; {advice}")
        if not tag:
            return row.weights.removeprefix(TIMM)
        name = row.weights.removeprefix(TIMM).partition(".")[0]
    return tagged(name, tag)


def tagged(name: str, tag: str) -> str:
    """`name.tag`; `tag` may already start with the name, or be empty."""
    if tag.partition(".")[0] == name:
        return tag
    return f"{name}.{tag}" if tag else name
