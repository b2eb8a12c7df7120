"""Options of onnxruntime's providers."""

from __future__ import annotations

from pathlib import Path

from rtdetr_tool.formats.onnx.runtime import provider_options


def test_cuda_uses_the_selected_gpu_and_does_not_search_exhaustively_for_each_batch_size():
    assert provider_options("cuda", 2) == {"device_id": "2", "cudnn_conv_algo_search": "HEURISTIC"}
    assert provider_options("tensorrt", 1) == {"device_id": "1"} and provider_options("cpu", 0) == {}


def test_gpu_providers_run_in_the_given_stream():
    assert provider_options("cuda", 0, 4096)["user_compute_stream"] == "4096"
    assert provider_options("tensorrt", 0, 4096)["user_compute_stream"] == "4096"
    assert provider_options("cpu", 0, 4096) == {}


def test_tensorrt_keeps_engines_and_timings_and_the_other_providers_have_none():
    options = provider_options("tensorrt", 0, None, Path("/cache/abc"))
    assert options == {
        "device_id": "0", "trt_engine_cache_enable": "1", "trt_engine_cache_path": "/cache/abc",
        "trt_timing_cache_enable": "1", "trt_timing_cache_path": "/cache/abc",
    }  # fmt: skip
    assert not any("cache" in key for key in provider_options("cuda", 0, None, Path("/cache/abc")))
