"""Write an RF-DETR as a file that Roboflow's package opens: weights with its names, settings and class names."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rtdetr_tool.catalog import COCO_CATEGORIES, DINOV2, ENCODERS
from rtdetr_tool.checkpoints.io import save_checkpoint
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rfdetr.names import to_rfdetr
from rtdetr_tool.families.rfdetr.resolved import resolve_rfdetr
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.spec import ExperimentSpec, spec_from_dict, spec_to_dict

_FEEDFORWARD = 2048  # width in every decoder layer of the package
_BOX_HEAD, _SHARED_BOX_HEAD = "bbox_embed.", "transformer.decoder.bbox_embed."


def write_rfdetr(target: Path, weights: Mapping[str, Tensor], meta: Mapping[str, Any]) -> list[str]:
    """Write the weights and the settings with which the package builds the same model."""
    spec = spec_from_dict(meta["spec"])
    width = resolve_rfdetr(spec.model.rfdetr).dim_feedforward
    if width != _FEEDFORWARD:
        raise CheckpointError(
            f"{target} cannot be written for rfdetr: model.rfdetr.dim_feedforward is {width}, but {_FEEDFORWARD} in "
            "the package. Write it as a file of this tool (--to rtdetr)"
        )
    named = [entry for entry in meta["classes"] if entry["name"] is not None]
    names = index_names(ClassMap.from_list(named, spec.dataset.num_classes)) if named else []
    write_package_file(target, weights, spec, names)
    return [] if named else [f"{target} has no class names, because the source has none; give them with --classes"]


def write_package_file(target: Path, weights: Mapping[str, Tensor], spec: ExperimentSpec, names: list[str]) -> None:
    """Write `{"model": ..., "args": ...}`; `names` are by class index."""
    if not in_package(spec):
        raise CheckpointError(
            f"{target} cannot be written for rfdetr, which has no encoder {resolve_rfdetr(spec.model.rfdetr).encoder}; "
            "export the detector to ONNX, or write a file of this tool (--to rtdetr)"
        )
    tensors = to_rfdetr({name: tensor.cpu() for name, tensor in weights.items()})
    if not resolve_rfdetr(spec.model.rfdetr).lite_refpoint_refine:  # the decoder refers to the head a second time
        shared = {n: tensor for n, tensor in tensors.items() if n.startswith(_BOX_HEAD)}
        tensors |= {_SHARED_BOX_HEAD + n.removeprefix(_BOX_HEAD): tensor for n, tensor in shared.items()}
    save_checkpoint({"model": tensors, "args": argparse.Namespace(**package_settings(spec, names))}, target)


def in_package(spec: ExperimentSpec) -> bool:
    """Whether Roboflow's package has the encoder of this model."""
    return ENCODERS[resolve_rfdetr(spec.model.rfdetr).encoder].kind == DINOV2


def package_settings(spec: ExperimentSpec, names: list[str]) -> dict[str, Any]:
    """The settings of the model by the package's names. Its number of classes does not count the background."""
    classes = spec.dataset.num_classes
    assert classes is not None  # what is opened has a number of classes
    return {
        **spec_to_dict(resolve_rfdetr(spec.model.rfdetr)),
        "num_classes": classes - 1,
        "class_names": names,
        "num_select": spec.model.num_select,
        "resolution": spec.dataset.augmentation.eval_spatial_size[0],
        "two_stage": True,
        "layer_norm": True,
        "pretrain_weights": "none",
        "dataset_dir": None,
        "output_dir": "output",
        "resume": "",
    }


def index_names(class_map: ClassMap) -> list[str]:
    """Names by class index, with `class_<index>` for an index without a class.

    For COCO these are its 80 names only, as in the published files, in which the class index is the category id.
    """
    entries = class_map.entries
    if {entry.index: entry.name for entry in entries} == COCO_CATEGORIES:
        return [entry.name for entry in entries]
    return [class_map.name_of(index) for index in range(entries[-1].index + 1)]
