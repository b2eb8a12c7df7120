"""Opening engines that cannot run here: each reason has its own message, from the real library."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from rtdetr_tool.errors import CheckpointError, UserError
from rtdetr_tool.formats.tensorrt.export import BuildSettings, choose_backend, write_engine
from rtdetr_tool.formats.tensorrt.file import library_for, origin, read_engine, refusal
from rtdetr_tool.formats.tensorrt.library import load_library
from rtdetr_tool.formats.tensorrt.plan import description_path, read_engine_file

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("tensorrt_rtx")
    nodes = [
        helper.make_node("Relu", ["inputs"], ["pred_logits"]),
        helper.make_node("Sigmoid", ["inputs"], ["pred_boxes"]),
    ]
    inputs = [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["batch", 3, 8, 8])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("pred_logits", "pred_boxes")]
    model = helper.make_model(
        helper.make_graph(nodes, "toy", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)]
    )
    path = tmp_path_factory.mktemp("toy") / "toy.onnx"
    onnx.save(model, path)
    settings = BuildSettings(max_batch=4, compute_capabilities=("SM89",))
    return choose_backend("tensorrt_rtx", False, ("SM89",)).build(path, settings)


@pytest.fixture
def engine(built, tmp_path):
    path = tmp_path / "model.engine"
    write_engine(path, built, {"names": {"0": "cat"}})
    return path


def refused(plan, description):
    """The library's errors for `plan`, and our explanation."""
    loaded = load_library("tensorrt_rtx")
    with loaded.listening() as messages:
        runtime = loaded.module.Runtime(loaded.logger)
        assert runtime.deserialize_cuda_engine(plan) is None, "the library returns None instead of raising"
        return refusal(loaded, runtime, Path("model.engine"), plan, description, messages)


@without_gpu
def test_without_a_driver_the_message_says_what_the_engine_needs(engine, built):
    version = built.report["version"]
    expected = rf"model\.engine requires an NVIDIA GPU .* \(built by TensorRT-RTX {version} for SM89\)"
    with pytest.raises(UserError, match=expected):
        read_engine(engine)
    plan, description = read_engine_file(engine)
    assert f"built by TensorRT-RTX {version} for SM89" in refused(plan, description)


@without_gpu
def test_without_a_description_the_header_tells_the_version(engine, built):
    description_path(engine).unlink()
    with pytest.raises(UserError, match=rf"requires an NVIDIA GPU .*its header says version {built.report['version']}"):
        read_engine(engine)


def test_an_engine_of_another_version_names_both(engine, built):
    plan, description = read_engine_file(engine)
    text = refused(plan, {**description, "build": {**description["build"], "version": "1.0.0.1"}})
    assert f"built by version 1.0.0.1, but TensorRT-RTX {built.report['version']} is installed" in text
    assert "Build it again" in text and "reports" in text and "\n  - " in text


def test_a_file_that_is_no_engine_is_told(engine, tmp_path):
    other = tmp_path / "photo.engine"
    other.write_bytes(b"\xff\xd8\xff\xe0 a photograph")
    with pytest.raises(CheckpointError, match=r"photo\.engine is not a TensorRT engine \(17 bytes"):
        read_engine(other)
    assert refused(b"not an engine" * 100, {}).startswith("model.engine is not a TensorRT engine (1300 bytes")


def test_an_engine_cut_short_is_told_with_its_description(engine):
    engine.write_bytes(engine.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        read_engine(engine)


def test_an_unknown_library_in_the_description_is_told(engine):
    plan, description = read_engine_file(engine)
    with pytest.raises(
        CheckpointError, match=r"has the unknown library 'openvino'; expected one of tensorrt, tensorrt_rtx"
    ):
        library_for(engine, plan, {**description, "build": {"backend": "openvino"}})


def test_an_engine_of_a_library_that_is_not_installed_gives_the_pip_command(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    plan, description = read_engine_file(engine)
    build = {"backend": "tensorrt", "version": "11.4.0.106", "compute_capabilities": ["SM90"]}
    with pytest.raises(UserError) as error:
        library_for(engine, plan, {**description, "build": build})
    assert "built by TensorRT 11.4.0.106 for SM90" in str(error.value)
    assert 'pip install "rtdetr-tool[tensorrt]"' in str(error.value)


def test_without_a_description_the_version_in_the_plan_chooses_the_library(engine, monkeypatch):
    plan = engine.read_bytes()
    assert library_for(engine, plan, {}).library.module == "tensorrt_rtx"
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    tensorrt_11 = plan[:24] + bytes([11, 4, 0, 106]) + plan[28:]
    with pytest.raises(UserError, match=r"its header says version 11\.4\.0\.106.*TensorRT is not installed"):
        library_for(engine, tensorrt_11, {})


def test_the_origin_of_an_engine_is_told_as_far_as_it_is_known(built):
    report = json.loads(json.dumps(built.report))
    assert origin(b"", {"build": report}) == f"built by TensorRT-RTX {report['version']} for SM89"
    assert origin(b"", {}) == "it does not record what built it"
