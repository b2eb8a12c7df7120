"""Options of onnxruntime's providers."""

from __future__ import annotations

from rtdetr_tool.formats.onnx.runtime import provider_options


def test_cuda_uses_the_selected_gpu_and_does_not_search_exhaustively_for_each_batch_size():
    assert provider_options("cuda", 2) == {"device_id": "2", "cudnn_conv_algo_search": "HEURISTIC"}
    assert provider_options("tensorrt", 1) == {"device_id": "1"} and provider_options("cpu", 0) == {}
