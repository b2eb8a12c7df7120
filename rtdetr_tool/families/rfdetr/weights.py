"""Read weights of an RF-DETR from Roboflow's files and those with our names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rtdetr_tool.catalog import ENCODERS, RFDETR_VARIANTS
from rtdetr_tool.checkpoints.detector_file import DetectorFile
from rtdetr_tool.checkpoints.family_weights import FileContents, ForeignFormat, Recognized, Writer
from rtdetr_tool.checkpoints.metadata import build_metadata
from rtdetr_tool.checkpoints.published import check_license
from rtdetr_tool.families.rfdetr.architecture import architecture_of_rfdetr, classes_of, describe_rfdetr, settings_of
from rtdetr_tool.families.rfdetr.encoders import pretrained_weights
from rtdetr_tool.families.rfdetr.names import from_rfdetr, has_native_names, has_rfdetr_names
from rtdetr_tool.families.rfdetr.package_file import write_rfdetr
from rtdetr_tool.families.rfdetr.resolved import resolve_rfdetr
from rtdetr_tool.spec import ModelSpec

ROBOFLOW = "rfdetr"


def _roboflow(tensors: Mapping[str, Tensor]) -> Recognized | None:
    return Recognized("an RF-DETR checkpoint of Roboflow") if has_rfdetr_names(tensors) else None


FORMATS = (ForeignFormat(ROBOFLOW, _roboflow, from_rfdetr, holds_epoch=True),)
WRITERS: Mapping[str, Writer] = {ROBOFLOW: write_rfdetr}


def is_complete(weights: Mapping[str, Tensor]) -> bool:
    """Whether these tensors with our names are an RF-DETR."""
    return has_native_names(weights)


def native_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same names, because TAO has no RF-DETR."""
    return dict(weights)


def summary(model: Mapping[str, Any], classes: int) -> str:
    """One line about the architecture, for the log."""
    return describe_rfdetr(model, classes)


def describe(file: DetectorFile, contents: FileContents, given: Mapping[str, Any]) -> None:
    """Fill in what follows from the shapes and the file's settings."""
    user_fields = given.get("rfdetr") or {}
    known = {**settings_of(contents.payload, file.source), **user_fields}
    model, classes = architecture_of_rfdetr(file.weights, known, file.source)
    if file.kind == ROBOFLOW:
        accepted = bool(user_fields.get("accept_platform_model_license"))
        check_license(file.source, RFDETR_VARIANTS[model["rfdetr"]["variant"]].license, accepted)
    named = classes_of(contents.payload, classes, file.weights)
    file.meta = build_metadata("", {"model": model, "dataset": {"num_classes": classes}}, named)
    file.meta["origin"] = {"format": file.kind, "version": 1}
    if not named:
        file.notes.append("The file has no class names; using those of the dataset or a classmap.")


def read_backbone(source: str, model: ModelSpec) -> dict[str, Tensor]:
    """The backbone's weights with our names, from a file or directory, or from timm (`timm`, `timm/<tag>`)."""
    return pretrained_weights(source, ENCODERS[resolve_rfdetr(model.rfdetr).encoder])
