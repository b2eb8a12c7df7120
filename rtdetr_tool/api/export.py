"""Export an opened detector to a file."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdetr_tool.api.keywords import applied, export_settings, format_section, leaves
from rtdetr_tool.errors import UserError
from rtdetr_tool.families.keywords import Settings
from rtdetr_tool.formats.opening import OpenedDetector
from rtdetr_tool.spec import spec_from_dict, spec_to_dict
from rtdetr_tool.workflows.export import export_detector

logger = logging.getLogger(__name__)


def export(opened: OpenedDetector, base: Settings, keywords: Mapping[str, Any], calibration: Any) -> Path:
    """Export a detector with the fields of the spec's `export` section in `base`, overridden by the keywords.

    Args:
        calibration: images for INT8; a folder, an array file, or an array [N, H, W, C] or [N, C, H, W].
    """
    settings = {**base, **export_settings(keywords)}
    section = format_section(keywords)
    if calibration is not None and (section is None or "calibration" not in leaves(section)):
        logger.warning("export: calibration_data has no effect: this format is not calibrated")
        calibration = None
    channels = opened.detector.num_channels
    images = calibration_array(calibration, channels) if isinstance(calibration, np.ndarray) else None
    if calibration is not None and images is None:
        if not isinstance(calibration, (str, os.PathLike)):
            raise UserError(
                f"export: calibration_data of type {type(calibration).__name__} is invalid; expected a folder of "
                "images, an array file (.npy), an array [N, height, width, channels]"
            )
        settings[f"{section}.calibration"] = os.fspath(calibration)
    spec = spec_from_dict(applied(spec_to_dict(opened.spec), settings), "export")
    return export_detector(opened, spec.export, spec.inference.conf_threshold, images)


def calibration_array(images: NDArray[np.generic], channels: int = 3) -> NDArray[np.generic]:
    """Images as [N, C, H, W], from channels-first or channels-last arrays."""
    if images.ndim == 4 and images.shape[-1] == channels and images.shape[1] != channels:
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return images
