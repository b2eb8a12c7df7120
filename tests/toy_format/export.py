"""Export to a toy file."""

from __future__ import annotations

import json
from typing import Any

import torch

from rtdetr_tool.files import replacing
from rtdetr_tool.formats.export_request import ExportRequest
from rtdetr_tool.formats.verification import verify_detections
from toy_format.file import DESCRIPTION, read
from toy_format.runtime import ToyRuntime


def export(request: ExportRequest) -> dict[str, Any]:
    model = request.model.eval()
    images = torch.rand(request.batch or 1, 3, *request.size)
    with torch.no_grad():
        network = torch.jit.trace(model, images, check_trace=False)
        outputs = dict(zip(model.output_names, model(images), strict=True))
    stored = {
        "description": request.description,
        "inputs": {model.input_name: [request.batch, 3, *request.size]},
        "outputs": {name: [request.batch, *output.shape[1:]] for name, output in outputs.items()},
    }
    with replacing(request.target) as temporary:
        torch.jit.save(network, str(temporary), _extra_files={DESCRIPTION: json.dumps(stored)})
        predict = ToyRuntime(read(temporary)).predict
        result = verify_detections(request.reference, predict, request.section.tolerance, request.target)
        return request.report(temporary, result)
