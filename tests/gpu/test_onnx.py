"""ONNX files on a GPU: tensors are bound without copies, and TensorRT's engines are kept."""

from __future__ import annotations

import time

import onnx
import onnxruntime
import pytest
import torch

from rtdetr_tool.catalog import ONNX_PROVIDERS
from rtdetr_tool.formats.export_model import ExportModel
from rtdetr_tool.formats.onnx.export import export_graph
from rtdetr_tool.formats.onnx.file import OnnxFile, parsed
from rtdetr_tool.formats.onnx.runtime import OnnxRuntime
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.masks import encode_batch
from rtdetr_tool.ops.structures import InstanceMasks, Predictions
from rtdetr_tool.spec import spec_from_dict
from tests.gpu.conftest import ACCELERATOR, TINY

DEVICE = "cuda" if ACCELERATOR == "gpu" else "cpu"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def needs(provider: str) -> pytest.MarkDecorator:
    missing = ONNX_PROVIDERS[provider] not in onnxruntime.get_available_providers()
    return pytest.mark.skipif(missing, reason=f"this onnxruntime has no {ONNX_PROVIDERS[provider]}")


@pytest.fixture
def file(tmp_path) -> OnnxFile:
    torch.manual_seed(0)
    spec = spec_from_dict({"results_dir": "unused", "model": TINY["rtdetr"]}).model
    graph = export_graph(ExportModel(build_detector(spec, 3)).eval(), (64, 64), None, 17)
    onnx.save(graph, tmp_path / "model.onnx")
    return parsed(tmp_path / "model.onnx", graph)


@pytest.mark.parametrize("provider", [pytest.param(name, marks=needs(name)) for name in ("cuda", "cpu")])
def test_a_graph_predicts_on_the_device_what_it_predicts_on_the_cpu(file, provider):
    device = DEVICE if provider == "cuda" else "cpu"
    runtime, reference = OnnxRuntime(file, device=device, provider=provider), OnnxRuntime(file)
    assert runtime.device.type == device
    for count in (2, 2, 1):
        images = torch.rand(count, 3, 64, 64)
        outputs, expected = runtime.predict(images.to(device)), reference.predict(images)
        assert outputs.boxes.device.type == device and outputs.boxes.shape == expected.boxes.shape
        torch.testing.assert_close(best_scores(outputs), best_scores(expected), atol=1e-2, rtol=0)


def best_scores(predictions: Predictions) -> torch.Tensor:
    """Of each query, in descending order, because rounding may exchange queries."""
    return predictions.logits.sigmoid().amax(-1).sort(descending=True).values.cpu()


@needs("tensorrt")
def test_a_second_start_of_tensorrt_uses_the_kept_engine(file, tmp_path, monkeypatch):
    monkeypatch.setenv("RF_HOME", str(tmp_path / "cache"))
    images, seconds = torch.rand(2, 3, 64, 64, device=DEVICE), []
    for _ in range(2):
        start = time.perf_counter()
        OnnxRuntime(file, device=DEVICE, provider="tensorrt").predict(images)
        seconds.append(time.perf_counter() - start)
    assert list((tmp_path / "cache").rglob("*.engine"))
    assert seconds[1] < seconds[0]


def test_masks_are_packed_on_the_device_as_computed_on_the_host():
    logits, query = torch.randn(5, 16, 16), torch.tensor([4, 0, 4])
    sizes = [(37, 50), (64, 64)]
    expected = encode_batch([InstanceMasks(logits, query, size, size) for size in sizes])
    # Interpolation differs in the last bits, so a pixel may flip at the border of a mask.
    actual = encode_batch([InstanceMasks(logits.to(DEVICE), query, size, size) for size in sizes])
    assert [len(each) for each in actual] == [len(each) for each in expected] == [3, 3]
    assert (
        sum(a == b for mine, other in zip(actual, expected, strict=True) for a, b in zip(mine, other, strict=True)) >= 4
    )
