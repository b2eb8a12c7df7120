"""Engines built and run on a GPU, compared with PyTorch."""

from __future__ import annotations

import onnx
import pytest
import torch

from rtdetr_tool.errors import CheckpointError, UserError
from rtdetr_tool.formats.export_model import ExportModel
from rtdetr_tool.formats.onnx.export import export_graph
from rtdetr_tool.formats.tensorrt.export import BuildSettings, choose_backend, write_engine
from rtdetr_tool.formats.tensorrt.file import read_engine
from rtdetr_tool.formats.tensorrt.library import LIBRARIES
from rtdetr_tool.formats.tensorrt.runtime import EngineRuntime
from rtdetr_tool.formats.torch.runtime import TorchRuntime
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.classes import ClassEntry, ClassMap
from rtdetr_tool.ops.structures import Predictions
from rtdetr_tool.spec import ModelSpec

pytestmark = pytest.mark.gpu

TINY = ModelSpec(
    backbone="resnet_18", hidden_dim=32, nheads=4, dim_feedforward=32, feat_channels=[32, 32, 32],
    num_queries=12, num_select=12, dec_layers=2, dn_number=4,
)  # fmt: skip
CLASSES = ClassMap([ClassEntry(0, 1, "a"), ClassEntry(1, 2, "b"), ClassEntry(2, 3, "c")])
SIZE = (64, 96)


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return build_detector(TINY, 3).eval()


@pytest.fixture(scope="module", params=LIBRARIES)
def backend(request):
    if not LIBRARIES[request.param].installed:
        pytest.skip(f"{request.param} is not installed")
    if request.param == "tensorrt_rtx" and torch.cuda.get_device_capability() in ((9, 0), (10, 0)):
        pytest.skip("TensorRT-RTX does not support data center GPUs of these generations")
    return choose_backend(request.param, gpu=True)


def build(backend, detector, folder, batch=None, **settings):
    model, path = folder / "model.onnx", folder / "model.engine"
    onnx.save(export_graph(ExportModel(detector), SIZE, batch, 17), model)
    write_engine(path, backend.build(model, BuildSettings(allow_tf32=False, **settings)), {"names": {"0": "a"}})
    return path


@pytest.fixture(scope="module")
def engine(backend, detector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    return build(backend, detector, folder, min_batch=2, opt_batch=2, max_batch=4, workspace_mb=1024)


def sorted_queries(predictions: Predictions) -> Predictions:
    """Queries sorted by one logit, because rounding may swap queries with nearly equal scores."""
    order = predictions.logits[..., 0].argsort(1)[..., None]
    logits, boxes = predictions.logits, predictions.boxes
    return Predictions(logits.gather(1, order.expand_as(logits)), boxes.gather(1, order.expand_as(boxes)))


def assert_same(found, expected):
    found, expected = sorted_queries(found), sorted_queries(expected)
    torch.testing.assert_close(found.logits.cpu(), expected.logits, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(found.boxes.cpu(), expected.boxes, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("count", [2, 4, 1, 3, 9])
def test_any_number_of_images_gives_what_torch_gives(engine, detector, count):
    """2 and 4 are the bounds of the profile, 1 is padded, 9 is split into 4, 4 and 1."""
    images = torch.rand(count, 3, *SIZE)
    runtime = EngineRuntime(read_engine(engine), CLASSES)
    result = runtime.predict(images.to(runtime.device))
    assert result.logits.shape == (count, 12, 3) and result.logits.device.type == "cuda"
    assert_same(result, TorchRuntime(detector, CLASSES).predict(images))


def test_an_engine_of_fixed_batch_takes_any_number_of_images(backend, detector, tmp_path):
    runtime = EngineRuntime(read_engine(build(backend, detector, tmp_path, batch=3)))
    assert (runtime.limits.smallest, runtime.limits.largest) == (3, 3)
    images = torch.rand(4, 3, *SIZE)
    assert_same(runtime.predict(images.to(runtime.device)), TorchRuntime(detector, None).predict(images))


def test_results_of_earlier_batches_stay_when_others_follow(engine):
    runtime = EngineRuntime(read_engine(engine))
    batches = [torch.rand(2, 3, *SIZE, device=runtime.device) for _ in range(5)]
    together = [runtime.predict(images) for images in batches]
    for images, first in zip(batches, together, strict=True):
        assert torch.equal(runtime.predict(images).logits, first.logits)


def test_it_follows_the_stream_of_the_caller(engine):
    runtime = EngineRuntime(read_engine(engine))
    images = torch.rand(2, 3, *SIZE, device=runtime.device)
    expected = runtime.predict(images).logits.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(images)
        torch.cuda._sleep(50_000_000)  # cycles: the input is filled only after this
        late.copy_(images)
        actual = runtime.predict(late).logits + 0
    stream.synchronize()
    assert torch.equal(actual, expected)


def test_it_says_what_it_is(engine, backend):
    runtime = EngineRuntime(read_engine(engine), CLASSES)
    title = LIBRARIES[backend.name].title.lower()
    assert runtime.name == f"{title} {backend.version}"
    assert (runtime.input_size, runtime.num_classes, runtime.class_map) == (SIZE, 3, CLASSES)
    assert runtime.device == torch.device("cuda", torch.cuda.current_device())
    assert (runtime.limits.smallest, runtime.limits.largest) == (2, 4)
    report = runtime.description["build"]
    assert report["compute_capabilities"] == ["SM{}{}".format(*torch.cuda.get_device_capability())]
    assert report["layers"]["source"] == "engine" and report["layers"]["count"] > 0


def test_a_timing_cache_is_extended_by_the_next_build(backend, detector, tmp_path):
    if not LIBRARIES[backend.name].timing_cache:
        pytest.skip(f"{backend.name} has none")
    cache = tmp_path / "timing.cache"
    model = tmp_path / "model.onnx"
    onnx.save(export_graph(ExportModel(detector), SIZE, 1, 17), model)
    states = [backend.build(model, BuildSettings(timing_cache=cache)).report["timing_cache"] for _ in range(2)]
    assert states == ["new", "extended"] and cache.stat().st_size > 0
    cache.write_bytes(b"damaged")
    assert backend.build(model, BuildSettings(timing_cache=cache)).report["timing_cache"] == "not taken"
    assert cache.read_bytes() == b"damaged"


def test_a_damaged_engine_is_refused_with_the_reasons_of_the_library(engine, tmp_path):
    plan = engine.read_bytes()
    damaged = tmp_path / "model.engine"
    damaged.write_bytes(plan[: len(plan) // 2])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        read_engine(damaged)


def test_the_cpu_is_refused(engine):
    with pytest.raises(UserError, match="runs on a GPU; device cpu was asked for"):
        read_engine(engine, "cpu")
