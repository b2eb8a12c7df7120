"""`rtdetr export`: write a checkpoint in another format, verified against PyTorch."""

from __future__ import annotations

import json

from rtdetr_tool.formats.opening import open_detector
from rtdetr_tool.formats.requested_size import RequestedSize
from rtdetr_tool.json_output import command_output
from rtdetr_tool.spec import LoadedSpec
from rtdetr_tool.spec.required import results_folder
from rtdetr_tool.status import current_status
from rtdetr_tool.workflows.export import check_section, check_target, choose_device, export_detector


def run(loaded: LoadedSpec) -> None:
    section = loaded.spec.export
    check_section(section)
    check_target(section)
    choose_device(section)
    current_status().running(f"Loading checkpoint: {section.checkpoint}")
    size = RequestedSize(section.input_height, section.input_width, "export")
    opened = open_detector(section.checkpoint, loaded, size)
    target = export_detector(opened, section, loaded.spec.inference.conf_threshold)
    content = json.loads((results_folder(section, "export") / "export.json").read_text(encoding="utf-8"))
    command_output().results = {"file": str(target), **content}
