"""The weights a new run starts from: a whole pretrained detector, a pretrained backbone, or random ones."""

from __future__ import annotations

import logging

from torch import Tensor, nn

from rtdetr_tool.catalog import BACKBONES
from rtdetr_tool.checkpoints.io import load_checkpoint, read_weights
from rtdetr_tool.checkpoints.layout import backbone_weights
from rtdetr_tool.checkpoints.loading import LoadReport, load_into
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.spec import ExperimentSpec

logger = logging.getLogger(__name__)

_CLASSIFIER = ("fc.", "head.", "classifier.")  # of an ImageNet model; a detector has no use for it


def load_initial_weights(detector: nn.Module, spec: ExperimentSpec) -> LoadReport | None:
    """Do what `train.pretrained_model_path` or, without it, `model.pretrained_backbone_path` says, and report it."""
    if spec.train.pretrained_model_path:
        path = spec.train.pretrained_model_path
        weights, _ = read_weights(path)
        report = load_into(detector, weights, source=path, strict=False)
        if spec.model.pretrained_backbone_path:
            logger.info("train.pretrained_model_path is given, so model.pretrained_backbone_path is not read.")
    elif spec.model.pretrained_backbone_path:
        path = spec.model.pretrained_backbone_path
        weights = read_backbone(path, spec.model.backbone)
        report = load_into(detector.backbone, weights, source=path, strict=False, what="backbone")
        report.unused = [name for name in report.unused if not name.startswith(_CLASSIFIER)]
    else:
        logger.info("Training starts from random weights.")
        return None
    logger.log(logging.INFO if report.complete else logging.WARNING, report.summary())
    return report


def read_backbone(source: str, backbone: str) -> dict[str, Tensor]:
    """Backbone tensors from a file, or from timm: `timm` (its default weights) or `timm/<tag>`.

    The file may be timm's, torchvision's, a TAO backbone, or a whole detector, whose backbone is then taken.
    """
    if source != "timm" and not source.startswith("timm/"):
        return backbone_weights(load_checkpoint(source), source)
    import timm

    tag = source.partition("/")[2]
    model = BACKBONES[backbone].timm_name
    name = tag if not tag or tag.startswith(model) else f"{model}.{tag}"
    name = name or model
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # whatever the network, the hub or timm's registry raise
        raise CheckpointError(
            f"model.pretrained_backbone_path: timm could not provide the weights of {name!r} "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). "
            "Without a network, download the file elsewhere and give its path."
        ) from error
