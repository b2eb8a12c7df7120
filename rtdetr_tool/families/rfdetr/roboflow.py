"""Write the bundle of files that can be uploaded to Roboflow, and upload it."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from rtdetr_tool.errors import UserError
from rtdetr_tool.families.rfdetr.package_file import index_names, write_package_file
from rtdetr_tool.files import write_atomically
from rtdetr_tool.formats.opening import OpenedDetector
from rtdetr_tool.messages import first_line
from rtdetr_tool.redaction import mask_secrets

logger = logging.getLogger(__name__)

_KEY = "ROBOFLOW_API_KEY"
WEIGHTS, CLASS_NAMES = "weights.pt", "class_names.txt"


def write_bundle(opened: OpenedDetector, folder: Path) -> None:
    """Write `weights.pt` (weights with Roboflow's names, settings, class names) and `class_names.txt`."""
    if (channels := opened.spec.model.num_channels) != 3:
        raise UserError(
            f"export_for_roboflow is not supported with num_channels={channels}, because Roboflow's package opens "
            "files as RGB models; export the detector to ONNX"
        )
    names = class_names(opened)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / CLASS_NAMES, "\n".join(names))
        write_package_file(folder / WEIGHTS, opened.detector.state_dict(), opened.spec, names)
    except OSError as error:
        raise UserError(f"export_for_roboflow: {folder} cannot be written: {error.strerror or error}") from None


def deploy(
    opened: OpenedDetector, workspace: str, project_id: str, version: int | str | None, api_key: str | None, size: str
) -> None:
    """Upload a detector to a version of a project with Roboflow's package."""
    key = api_key or os.environ.get(_KEY)
    if not key:
        raise UserError(f"deploy_to_roboflow: api_key is required, but not set; pass it or set {_KEY}")
    try:
        package: Any = importlib.import_module("roboflow")
    except ImportError:
        raise UserError("deploy_to_roboflow requires roboflow: pip install roboflow") from None
    said = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="roboflow_") as folder:
        write_bundle(opened, Path(folder))
        try:
            with contextlib.redirect_stdout(said):  # the package prints failures of an upload instead of raising them
                project = package.Roboflow(api_key=key).workspace(workspace).project(project_id)
                number = _newest_version(project) if version is None else version
                project.version(int(number)).deploy(size, folder, WEIGHTS)
        except Exception as error:  # the package has no common base class
            raise UserError(f"deploy_to_roboflow: {mask_secrets(first_line(error, limit=300))}") from error
    text = said.getvalue()
    failure = next((line for line in text.splitlines() if line.startswith("An error occured")), None)
    if failure is not None:
        raise UserError(f"deploy_to_roboflow: {mask_secrets(failure)}")
    logger.info("Uploaded %s to %s/%s/%s", size, workspace, project_id, number)


def _newest_version(project: Any) -> int:
    """The highest number of a project's versions."""
    return max((int(str(row["id"]).rpartition("/")[2]) for row in project.get_version_information()), default=1)


def class_names(opened: OpenedDetector) -> list[str]:
    """Names by class index; UserError without names."""
    if opened.class_map is None:
        raise UserError(
            "export_for_roboflow: the classes have no names; train this detector, or load a file with names"
        )
    return index_names(opened.class_map)
