"""The weights a new run starts from: a whole pretrained detector, a pretrained backbone, or random ones."""

from __future__ import annotations

import logging

from torch import Tensor, nn

from rtdetr_tool.catalog import BACKBONES, DINOV2, TIMM
from rtdetr_tool.checkpoints.backbone_names import CLASSIFIER
from rtdetr_tool.checkpoints.class_rows import Classes
from rtdetr_tool.checkpoints.detector_file import read_detector, weights_file
from rtdetr_tool.checkpoints.dinov2 import from_dinov2
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.checkpoints.layout import backbone_weights, state_dict_of
from rtdetr_tool.checkpoints.loading import LoadReport, load_into
from rtdetr_tool.checkpoints.metadata import differences, section_of
from rtdetr_tool.checkpoints.rfdetr import is_rfdetr
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rfdetr.spec import resolve_rfdetr
from rtdetr_tool.spec import ExperimentSpec, ModelSpec, spec_to_dict

logger = logging.getLogger(__name__)


def load_initial_weights(detector: nn.Module, spec: ExperimentSpec, classes: Classes) -> LoadReport | None:
    """Do what `train.pretrained_model_path` or, without it, `model.pretrained_backbone_path` says, and report it.

    `classes` are those of the data; class rows of a whole detector are copied by their names.
    """
    if spec.train.pretrained_model_path:
        path = spec.train.pretrained_model_path
        given = spec_to_dict(spec)["model"]
        del given["pe_order"]  # no choice that a file leaves: it is known whose it is
        file = read_detector(path, given)
        logger.info("%s is %s", path, file.what)
        family = section_of(file.meta, "spec.model").get("arch", "rtdetr")
        if family != spec.model.arch:
            raise CheckpointError(
                f"train.pretrained_model_path: {path} is of model.arch {family}, the spec of {spec.model.arch}, and "
                f"weights of one family do not fit the other. Set model.arch={family}, or give other weights."
            )
        for difference in differences(spec, file.meta, ignored=("pe_order",) if _square_inputs(spec) else ()):
            logger.warning("Not as in %s: %s", path, difference)
        trained_with = section_of(file.meta, "spec.model").get("freeze_norm")
        if trained_with not in (None, spec.model.freeze_norm):
            logger.info("%s has model.freeze_norm %s, this run %s.", path, trained_with, spec.model.freeze_norm)
        names = file.meta["classes"]
        report = load_into(detector, file.weights, source=path, strict=False, classes=classes, file_classes=names)
        if spec.model.pretrained_backbone_path:
            logger.info("train.pretrained_model_path is given, so model.pretrained_backbone_path is not read.")
    elif spec.model.pretrained_backbone_path:
        path = spec.model.pretrained_backbone_path
        rfdetr = spec.model.arch == "rfdetr"
        weights = read_vit(path, spec.model) if rfdetr else read_backbone(path, spec.model.backbone)
        backbone = getattr(detector.backbone, "published", detector.backbone)  # where the names are timm's
        report = load_into(backbone, weights, source=path, strict=False, what="backbone")
        report.unused = [name for name in report.unused if not name.startswith(CLASSIFIER)]
    else:
        logger.info("Training starts from random weights.")
        return None
    logger.log(logging.INFO if report.complete else logging.WARNING, report.summary())
    return report


def _square_inputs(spec: ExperimentSpec) -> bool:
    """Whether the network sees square images only, on which `model.pe_order` makes no difference."""
    augmentation = spec.dataset.augmentation
    sizes = [augmentation.train_spatial_size, augmentation.eval_spatial_size]
    if augmentation.preserve_aspect_ratio:
        sizes = []
    sizes += [size for size in augmentation.multi_scales if not isinstance(size, int)]
    return all(height == width for height, width in sizes)


def read_backbone(source: str, backbone: str) -> dict[str, Tensor]:
    """Backbone tensors from a file, or from timm: `timm` (its default weights) or `timm/<tag>`.

    The file may be timm's, torchvision's, of the network's own repository, a backbone of TAO or of the official
    RT-DETR, or a whole detector of any kind (file or directory), whose backbone is then taken.
    """
    if source != "timm" and not source.startswith(TIMM):
        return backbone_weights(load_checkpoint(weights_file(source)), source)
    return from_timm(timm_weights(source, backbone))


def read_vit(source: str, model: ModelSpec) -> dict[str, Tensor]:
    """The ViT of an RF-DETR by our names: from a file or directory, or from timm (`timm`, `timm/<tag>`).

    The file may be DINOv2 as transformers, timm or Meta publish it, or a whole RF-DETR of any kind.
    """
    if source == "timm" or source.startswith(TIMM):
        name = DINOV2[resolve_rfdetr(model.rfdetr).encoder].timm_name
        return from_dinov2(from_timm(_tagged(name, source.removeprefix("timm").removeprefix("/"))))
    tensors = state_dict_of(load_checkpoint(weights_file(source)))
    if is_rfdetr(tensors) or any(name.endswith("decoder.refpoint_embed.weight") for name in tensors):
        start, weights = "backbone.", read_detector(source).weights
        return {name.removeprefix(start): tensor for name, tensor in weights.items() if name.startswith(start)}
    try:
        return from_dinov2(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"model.pretrained_backbone_path: {source} is no ViT for RF-DETR: {error}") from error


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
    return _tagged(name, tag)


def _tagged(name: str, tag: str) -> str:
    """`name.tag`; the tag may have the name in front already, or be empty."""
    if tag.partition(".")[0] == name:
        return tag
    return f"{name}.{tag}" if tag else name
