"""Write the bundle of files that can be uploaded to Roboflow."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rtdetr_tool.checkpoints.io import save_checkpoint
from rtdetr_tool.errors import UserError
from rtdetr_tool.families.rfdetr.names import to_rfdetr
from rtdetr_tool.families.rfdetr.resolved import resolve_rfdetr
from rtdetr_tool.families.rfdetr.run_files import index_names
from rtdetr_tool.files import write_atomically
from rtdetr_tool.formats.opening import OpenedDetector
from rtdetr_tool.spec import spec_to_dict

WEIGHTS, CLASS_NAMES = "weights.pt", "class_names.txt"


def write_bundle(opened: OpenedDetector, folder: Path) -> None:
    """Write `weights.pt` (weights with Roboflow's names, settings, class names) and `class_names.txt`."""
    names = class_names(opened)
    settings = {**spec_to_dict(resolve_rfdetr(opened.spec.model.rfdetr)), **_roboflow_settings(opened, names)}
    weights = to_rfdetr({name: tensor.cpu() for name, tensor in opened.detector.state_dict().items()})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / CLASS_NAMES, "\n".join(names))
        save_checkpoint({"model": weights, "args": argparse.Namespace(**settings)}, folder / WEIGHTS)
    except OSError as error:
        raise UserError(f"export_for_roboflow: {folder} cannot be written: {error.strerror or error}") from None


def class_names(opened: OpenedDetector) -> list[str]:
    """Names by class index; UserError without names."""
    if opened.class_map is None:
        raise UserError(
            "export_for_roboflow: the classes have no names; train this detector, or load a file with names"
        )
    return index_names(opened.class_map)


def _roboflow_settings(opened: OpenedDetector, names: list[str]) -> dict[str, Any]:
    """Settings with another name or meaning in Roboflow's package."""
    classes = opened.spec.dataset.num_classes
    assert classes is not None  # what is opened has a number of classes
    return {
        "num_classes": classes - 1,
        "class_names": names,
        "num_select": opened.spec.model.num_select,
        "resolution": opened.spec.dataset.augmentation.eval_spatial_size[0],
        "two_stage": True,
        "layer_norm": True,
        "pretrain_weights": "none",
        "dataset_dir": None,
        "output_dir": "output",
        "resume": "",
    }
