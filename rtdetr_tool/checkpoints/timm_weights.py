"""Backbone weights from timm, by the name that timm has for them."""

from __future__ import annotations

import logging

from torch import Tensor

from rtdetr_tool.catalog import BACKBONES, TIMM
from rtdetr_tool.errors import CheckpointError

logger = logging.getLogger(__name__)


def is_timm(source: str) -> bool:
    """Whether `model.pretrained_backbone_path` asks for weights of timm: `timm` or `timm/<tag>`."""
    return source == "timm" or source.startswith(TIMM)


def from_timm(name: str) -> dict[str, Tensor]:
    """Weights of timm by timm's name for them, from its cache or the network."""
    import timm

    try:
        network = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # whatever the network, the hub or timm's registry raise
        raise CheckpointError(
            f"model.pretrained_backbone_path: timm could not provide the weights of {name!r} "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). "
            "Without a network, download the file elsewhere and give its path."
        ) from error
    licence = network.pretrained_cfg.get("license")
    logger.info("%s: weights of timm, licence %s", name, licence or "not stated")
    return network.state_dict()


def timm_weights(source: str, backbone: str) -> str:
    """What timm calls the weights that `source` (`timm` or `timm/<tag>`) asks for: `name.tag`, or `name` = its default.

    Raises:
        CheckpointError: when timm has no such backbone.
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
            public = f"give the path of a file; public ones are {row.weights}" if row.weights else "none are published"
            raise CheckpointError(f"model.pretrained_backbone_path: timm has no weights of {backbone}: {public}")
        name = row.timm_name
    return tagged(name, tag)


def tagged(name: str, tag: str) -> str:
    """`name.tag`; the tag may have the name in front already, or be empty."""
    if tag.partition(".")[0] == name:
        return tag
    return f"{name}.{tag}" if tag else name
