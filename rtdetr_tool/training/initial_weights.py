"""Load the weights that a run starts from: a pretrained detector, a pretrained backbone, or random weights."""

from __future__ import annotations

import logging

from torch import nn

from rtdetr_tool.checkpoints.backbone_names import CLASSIFIER
from rtdetr_tool.checkpoints.class_rows import Classes
from rtdetr_tool.checkpoints.detector_file import read_detector
from rtdetr_tool.checkpoints.family_weights import weights_of
from rtdetr_tool.checkpoints.loading import LoadReport, load_into
from rtdetr_tool.checkpoints.metadata import differences, section_of
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families import DEFAULT_FAMILY, all_families
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.spec import ExperimentSpec, spec_to_dict
from rtdetr_tool.spec.sub_detectors import training_sizes, whole_size
from rtdetr_tool.training.freezing import freezing_section

logger = logging.getLogger(__name__)


def load_initial_weights(detector: Detector, spec: ExperimentSpec, classes: Classes) -> LoadReport | None:
    """Load `train.pretrained_model_path` or, if that is not set, `model.pretrained_backbone_path`, and log the result.

    Args:
        classes: the classes of the data. Class rows of a whole detector are copied by their names.
    """
    if spec.train.pretrained_model_path:
        path = spec.train.pretrained_model_path
        orientation = [name for family in all_families() for name in family.orientation_fields]
        settings = {name: value for name, value in spec_to_dict(spec)["model"].items() if name not in orientation}
        file = read_detector(path, settings)
        logger.info("%s is %s", path, file.what)
        family = section_of(file.meta, "spec.model").get("arch", DEFAULT_FAMILY)
        if family != spec.model.arch:
            raise CheckpointError(
                f"train.pretrained_model_path: {path} has model.arch {family}, but the spec has {spec.model.arch}, and "
                f"weights of one family do not fit the other. Set model.arch={family}, or use other weights."
            )
        for difference in differences(spec, file.meta, ignored=orientation if _square_inputs(spec) else ()):
            logger.warning("This run differs from that of %s: %s", path, difference)
        if (section := freezing_section(spec.model)) is not None:
            where = ".".join(filter(None, ("model", spec.model.family.freezing)))
            trained_with = section_of(file.meta, f"spec.{where}").get("freeze_norm")
            if trained_with not in (None, section.freeze_norm):
                logger.info(
                    "%s was trained with %s.freeze_norm %s, this run uses %s",
                    path,
                    where,
                    trained_with,
                    section.freeze_norm,
                )
        names = file.meta["classes"]
        report = load_into(detector, file.weights, source=path, strict=False, classes=classes, file_classes=names)
        detector.forget_data()
        if spec.model.pretrained_backbone_path:
            logger.info("train.pretrained_model_path is set; ignoring model.pretrained_backbone_path")
    elif spec.model.pretrained_backbone_path:
        path = spec.model.pretrained_backbone_path
        weights = weights_of(spec.model.family).read_backbone(path, spec.model)
        backbone: nn.Module = detector.backbone
        if not any(map(detector.backbone.is_published, weights)):  # else they are of a detector, with our names
            backbone = detector.backbone.published
        report = load_into(backbone, weights, source=path, strict=False, what="backbone")
        report.unused = [name for name in report.unused if not name.startswith(CLASSIFIER)]
    else:
        logger.info("Training from random weights")
        if not spec.model.train_backbone or spec.model.backbone_lora.enabled:
            logger.warning(
                "The backbone has random weights, which this run does not train; set model.pretrained_backbone_path or "
                "train.pretrained_model_path"
            )
        return None
    logger.log(logging.INFO if report.complete else logging.WARNING, report.summary())
    return report


def _square_inputs(spec: ExperimentSpec) -> bool:
    """Whether the network only sees square images, for which the orientation fields make no difference."""
    augmentation = spec.dataset.augmentation
    drawn = training_sizes(spec) if augmentation.multi_scales or spec.train.supernet.enabled else []
    loaded = [] if augmentation.preserve_aspect_ratio else [augmentation.train_spatial_size]
    evaluated = whole_size(augmentation)
    return all(height == width for height, width in (*loaded, evaluated, *drawn))
