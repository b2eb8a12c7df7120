"""The maps of a backbone as an ONNX graph."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch

from rtdetr_tool.formats.onnx.export import quiet


def check_onnx_maps(backbone, images, expected, path) -> None:
    """Export a backbone that is folded for inference, and run it with other batch sizes.

    Args:
        images: [3, 3, H, W]
        expected: its maps of these images.
    """
    names, file = [f"map_{index}" for index in range(len(expected))], str(path)
    with quiet(verbose=False):
        torch.onnx.export(
            backbone, (images[:2],), file, input_names=["inputs"], output_names=names, opset_version=17,
            dynamic_axes={name: {0: "batch"} for name in ("inputs", *names)}, dynamo=False,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        actual = session.run(names, {"inputs": images[:batch].numpy()})
        for ours, reference in zip(actual, expected, strict=True):
            np.testing.assert_allclose(ours, reference[:batch].numpy(), atol=1e-4)
