"""Writing an opened detector as ONNX or TFLite."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdetr_tool.api.keywords import applied, export_settings
from rtdetr_tool.errors import UserError
from rtdetr_tool.families.keywords import Settings
from rtdetr_tool.formats.opening import OpenedDetector
from rtdetr_tool.spec import spec_from_dict, spec_to_dict
from rtdetr_tool.workflows.export import export_detector


def export(opened: OpenedDetector, base: Settings, keywords: Mapping[str, Any], calibration: Any) -> Path:
    """Write a detector as fields of the spec's `export` section say: those of `base`, and over them the keywords.

    Args:
        calibration: images for INT8; a folder, an array file, or an array [N, H, W, 3] or [N, 3, H, W].
    """
    chosen = {**base, **export_settings(keywords)}
    pictures = calibration_array(calibration) if isinstance(calibration, np.ndarray) else None
    if calibration is not None and pictures is None:
        if not isinstance(calibration, (str, os.PathLike)):
            raise UserError(
                f"export: calibration_data of type {type(calibration).__name__} is invalid; expected a folder of "
                "images, an array file (.npy), an array [N, height, width, 3]"
            )
        chosen["export.tflite.calibration"] = os.fspath(calibration)
    spec = spec_from_dict(applied(spec_to_dict(opened.spec), chosen), "export")
    return export_detector(opened, spec.export, spec.inference.conf_threshold, pictures)


def calibration_array(images: NDArray[np.generic]) -> NDArray[np.generic]:
    """Images as [N, 3, H, W], whichever of the two orders they are given in."""
    if images.ndim == 4 and images.shape[-1] == 3 and images.shape[1] != 3:
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return images
