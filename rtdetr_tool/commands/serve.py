"""`rtdetr serve`: answer HTTP requests with detections."""

from __future__ import annotations

from rtdetr_tool.json_output import command_output
from rtdetr_tool.spec import LoadedSpec
from rtdetr_tool.status import current_status
from rtdetr_tool.workflows.serving import PACKAGES


def run(loaded: LoadedSpec) -> None:
    PACKAGES.require("`rtdetr serve`")
    from rtdetr_tool.workflows.serving.server import serve

    current_status().running(f"Loading checkpoint: {loaded.spec.serve.checkpoint}")
    command_output().results = serve(loaded)
