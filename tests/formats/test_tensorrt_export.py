"""Engines from ONNX graphs, built by TensorRT-RTX without a GPU; every refusal has a reason."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from rtdetr_tool.errors import RtdetrError, UserError
from rtdetr_tool.formats.onnx.export import export_graph
from rtdetr_tool.formats.tensorrt.export import BuildSettings, choose_backend, write_engine
from rtdetr_tool.formats.tensorrt.library import load_library
from rtdetr_tool.formats.tensorrt.plan import read_engine_file
from rtdetr_tool.formats.tensorrt.report import summary
from rtdetr_tool.formats.tensorrt.timing_cache import TimingCache


@pytest.fixture
def rtx():
    pytest.importorskip("tensorrt_rtx")
    return choose_backend("tensorrt_rtx", False, ("SM89",))


@pytest.fixture(autouse=True)
def heard(monkeypatch):
    """Connect our logger to the root logger, because commands in other tests may have disconnected it."""
    monkeypatch.setattr(logging.getLogger("rtdetr_tool"), "propagate", True)


@pytest.fixture(scope="module")
def detector_onnx(export_model, tmp_path_factory):
    """A small RT-DETR with a dynamic batch, inputs of 64 x 96."""
    path = tmp_path_factory.mktemp("detector") / "model.onnx"
    onnx.save(export_graph(export_model, (64, 96), None, 17), path)
    return path


@pytest.fixture
def toy_onnx(tmp_path):
    """Write a graph with a detector's names that is built quickly."""

    def write(*arguments, **options):
        path = tmp_path / "toy.onnx"
        onnx.save(toy_graph(*arguments, **options), path)
        return path

    return write


def toy_graph(nodes=None, batch="batch", size=(8, 8), initializers=()):
    nodes = nodes or [
        helper.make_node("Relu", ["inputs"], ["pred_logits"], name="relu"),
        helper.make_node("Sigmoid", ["inputs"], ["pred_boxes"], name="sigmoid"),
    ]
    shape = [batch, 3, *size]
    inputs = [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("pred_logits", "pred_boxes")]
    graph = helper.make_graph(nodes, "toy", inputs, outputs, list(initializers))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nvidia", 1)]
    return helper.make_model(graph, opset_imports=opsets)


def settings(*batches, **others):
    names = ("min_batch", "opt_batch", "max_batch")
    return BuildSettings(**{"compute_capabilities": ("SM89",), **dict(zip(names, batches, strict=False)), **others})


@pytest.mark.slow
def test_an_rt_detr_is_built_for_two_generations_of_gpus_without_one(rtx, detector_onnx, tmp_path):
    for capability in ("SM89", "SM120"):
        built = rtx.build(detector_onnx, settings(1, 2, 4, compute_capabilities=(capability,), workspace_mb=512))
        path = tmp_path / f"{capability}.engine"
        write_engine(path, built, {"names": {"0": "cat"}})
        plan, description = read_engine_file(path)
        assert plan == built.plan and len(plan) > 1_000_000
        report = description["build"]
        assert (report["backend"], report["compute_capabilities"]) == ("tensorrt_rtx", [capability])
        assert report["version"] == rtx.version and report["bytes"] == len(plan) and report["gpu"] is None
        assert report["profile"] == {"inputs": {"min": [1, 3, 64, 96], "opt": [2, 3, 64, 96], "max": [4, 3, 64, 96]}}
        assert report["inputs"] == [{"name": "inputs", "shape": [-1, 3, 64, 96], "type": "float32"}]
        assert [(out["name"], out["shape"][1:]) for out in report["outputs"]] == [
            ("pred_logits", [20, 3]),
            ("pred_boxes", [20, 4]),
        ]
        assert set(report["precision"]) == {"float32"}
        assert report["layers"]["source"] == "network" and report["layers"]["by_type"]["topk"] == 1
        assert report["layers"]["count"] == sum(report["layers"]["by_type"].values())
        assert description["names"] == {"0": "cat"} and description["engine"]["bytes"] == len(plan)


def test_one_engine_for_several_gpus_names_each_of_them_once(rtx, toy_onnx):
    built = rtx.build(toy_onnx(), settings(compute_capabilities=("sm89", "SM120", "SM89")))
    assert built.report["compute_capabilities"] == ["SM89", "SM120"]
    assert rtx.build(toy_onnx(), settings(compute_capabilities=("AMPERE_PLUS",))).plan


def test_the_summary_says_size_time_profile_layers_and_precision(rtx, toy_onnx):
    report = rtx.build(toy_onnx(), settings(2, 2, 6)).report
    lines = summary({**report, "bytes": 12_300_000, "seconds": 4.56}).splitlines()
    assert lines[0] == f"tensorrt_rtx {rtx.version} for SM89: 12.3 MB in 4.6 s"
    assert lines[1] == "input inputs 2..6 (best 2) x 3 x 8 x 8"
    assert lines[2] == "2 layers in the network, before fusing: activation 2"
    assert lines[3] == "layers by precision: float32 2"


def test_the_graph_alone_decides_the_precision(rtx, toy_onnx):
    weight = helper.make_tensor("weight", TensorProto.FLOAT16, [2, 3, 1, 1], [0.5] * 6)
    nodes = [
        helper.make_node("Cast", ["inputs"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["half", "weight"], ["features"]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("Cast", ["active"], ["pred_logits"], to=TensorProto.FLOAT),
        helper.make_node("Sigmoid", ["inputs"], ["pred_boxes"]),
    ]
    report = rtx.build(toy_onnx(nodes, initializers=[weight]), settings()).report
    # float16: the first cast, convolution, relu; float32: the last cast, sigmoid
    assert report["precision"] == {"float16": 3, "float32": 2}
    assert [tensor["type"] for tensor in report["inputs"] + report["outputs"]] == ["float32"] * 3


def test_a_convolution_between_quantizing_nodes_counts_as_int8(rtx, toy_onnx):
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1])
    zero = helper.make_tensor("zero", TensorProto.INT8, [], [0])
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [2, 3, 1, 1], [0.5] * 6)
    nodes = [
        helper.make_node("QuantizeLinear", ["inputs", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        helper.make_node("QuantizeLinear", ["weight", "scale", "zero"], ["wq"]),
        helper.make_node("DequantizeLinear", ["wq", "scale", "zero"], ["wdq"]),
        helper.make_node("Conv", ["dq", "wdq"], ["pred_logits"]),
        helper.make_node("Sigmoid", ["inputs"], ["pred_boxes"]),
    ]
    report = rtx.build(toy_onnx(nodes, initializers=[scale, zero, weight]), settings()).report
    assert report["precision"] == {"int8": 1, "float32": 1}


# Batch sizes


def test_a_fixed_batch_is_the_whole_profile(rtx, toy_onnx):
    report = rtx.build(toy_onnx(batch=5), settings()).report
    assert {shape[0] for shape in report["profile"]["inputs"].values()} == {5}
    assert rtx.build(toy_onnx(batch=5), settings(5, 5, 5)).report["profile"] == report["profile"]


def test_a_fixed_batch_and_another_one_asked_for_contradict(rtx, toy_onnx):
    with pytest.raises(UserError, match=r"fixed batch of 5, but .*max_batch_size=8 is requested") as error:
        rtx.build(toy_onnx(batch=5), settings(5, 5, 8))
    assert "min_batch_size" not in str(error.value) and "export.batch_size=-1" in str(error.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [((), (1, 1, 1)), ((None, None, 4), (1, 1, 4)), ((2,), (2, 2, 2)), ((None, 3), (1, 3, 3)), ((1, 2, 4), (1, 2, 4))],
)
def test_omitted_batch_sizes_follow_the_others(given, expected):
    assert settings(*given).batches(None) == expected


@pytest.mark.parametrize("given", [(4, 2, 8), (1, 4, 2), (4, None, 2)])
def test_batch_sizes_out_of_order_are_refused(given):
    with pytest.raises(UserError, match="expected 1 <= min <= opt <= max"):
        settings(*given).batches(None)


def test_a_dynamic_image_size_is_refused(rtx, toy_onnx):
    with pytest.raises(UserError, match=r"input inputs is \[-1, 3, -1, -1\]: only the batch"):
        rtx.build(toy_onnx(size=("height", "width")), settings())


# Unsupported graphs


def test_every_node_that_the_library_refuses_is_named(rtx, toy_onnx):
    plugin = "MultiscaleDeformableAttnPlugin_TRT"
    nodes = [
        helper.make_node(plugin, ["inputs"], ["pred_logits"], name="attn", domain="nvidia"),
        helper.make_node("NoSuchOperator", ["inputs"], ["pred_boxes"], name="strange"),
    ]
    with pytest.raises(UserError) as error:
        rtx.build(toy_onnx(nodes), settings())
    text = str(error.value)
    assert "2 problems" in text
    for start in (f"  - node 0 attn ({plugin}): ", "  - node 1 strange (NoSuchOperator): "):
        assert [line for line in text.splitlines() if line.startswith(start) and len(line) > len(start) + 5]


@pytest.mark.parametrize("content", [b"not an ONNX file", b"", onnx.ModelProto(ir_version=8).SerializeToString()])
def test_what_is_no_onnx_graph_is_told(rtx, tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"Failed to parse the ONNX model|no inputs or no outputs"):
        rtx.build(path, settings())


def test_a_build_that_fails_gives_the_reasons_of_the_library(rtx, toy_onnx):
    """TensorRT-RTX does not support FP32 matrix products on Turing."""
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [8, 8], [0.5] * 64)
    nodes = [
        helper.make_node("MatMul", ["inputs", "weight"], ["pred_logits"], name="product"),
        helper.make_node("Sigmoid", ["inputs"], ["pred_boxes"]),
    ]
    with pytest.raises(RtdetrError, match=r"building the engine with TensorRT-RTX .* failed:\n  - .*Turing") as error:
        rtx.build(toy_onnx(nodes, initializers=[weight]), settings(compute_capabilities=("SM75",)))
    assert str(error.value).count("\n") == 1, "one reason, without consequential errors"


def test_what_a_build_would_refuse_is_found_before_it(rtx, toy_onnx):
    strange = [helper.make_node("NoSuchOperator", ["inputs"], ["pred_boxes", "pred_logits"])]
    rtx.check(toy_onnx(), settings(1, 2, 4))
    for nodes, batch, wrong, words in (
        (strange, "batch", settings(), "NoSuchOperator"),
        (None, 5, settings(1), "fixed batch of 5"),
        (None, "batch", settings(compute_capabilities=("SM1",)), "SM1 is invalid"),
    ):
        with pytest.raises(UserError, match=words):
            rtx.check(toy_onnx(nodes, batch), wrong)


def test_an_unknown_compute_capability_lists_the_known_ones(rtx, toy_onnx):
    with pytest.raises(UserError, match=r"SM90 is invalid; .* supports SM75, SM80, SM86, SM89, SM120"):
        rtx.build(toy_onnx(), settings(compute_capabilities=("SM89", "SM90")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_the_compute_capability_has_to_be_named(rtx, toy_onnx):
    expected = r"gen_trt_engine\.compute_capability: required without a GPU .*SM89"
    with pytest.raises(UserError, match=expected):
        choose_backend("auto", gpu=False)
    with pytest.raises(UserError, match=expected):
        rtx.build(toy_onnx(), settings(compute_capabilities=()))


# Messages of the library


def test_verbose_brings_the_messages_of_the_library_to_our_log(rtx, caplog, toy_onnx):
    ours, reference = "rtdetr_tool.formats.tensorrt.library", "tensorrt_rtx"
    for verbose, expected, other in ((False, reference, ours), (True, ours, reference)):
        caplog.clear()
        with caplog.at_level(logging.DEBUG):
            rtx.build(toy_onnx(), settings(verbose=verbose))
        names = [record.name for record in caplog.records if "Engine generation completed" in record.getMessage()]
        assert names == [expected]
        assert other not in {record.name for record in caplog.records}


def test_builds_one_after_the_other_share_the_one_logger(rtx, caplog, toy_onnx):
    with caplog.at_level(logging.DEBUG, logger="tensorrt_rtx"):
        for _ in range(2):
            assert rtx.build(toy_onnx(), settings()).report["warnings"] == []
    assert not [record for record in caplog.records if "differs from one already registered" in record.getMessage()]


@pytest.fixture
def interruptible():
    """Handle SIGINT, which processes of pytest-xdist ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_a_build_and_the_next_one_works(rtx, detector_onnx, interruptible, toy_onnx):
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        while True:
            rtx.build(detector_onnx, settings(1, 1, 2))
    assert time.perf_counter() - start < 60
    assert rtx.build(toy_onnx(), settings()).plan


# Timing cache


def test_tensorrt_rtx_has_no_timing_cache_and_says_so(rtx, tmp_path, caplog, toy_onnx):
    path = tmp_path / "timing.cache"
    with caplog.at_level(logging.WARNING):
        report = rtx.build(toy_onnx(), settings(timing_cache=path)).report
    assert report["timing_cache"] == "not used by TensorRT-RTX" and not path.exists()
    assert "gen_trt_engine.timing_cache has no effect" in caplog.text


def with_cache(path: Path) -> TimingCache:
    """A build that uses the file, because TensorRT-RTX still has the calls of TensorRT's cache."""
    loaded = load_library("tensorrt_rtx")
    cache = TimingCache(path, loaded, usable=True)
    with loaded.listening() as messages:
        config = loaded.module.Builder(loaded.logger).create_builder_config()
        cache.attach(config, messages)
        cache.save(config)
    return cache


@pytest.mark.filterwarnings("ignore")
def test_a_timing_cache_is_made_whole_with_its_folder(rtx, tmp_path):
    """Extending it requires a GPU: `test_tensorrt_runtime_gpu.py`."""
    path = tmp_path / "folder" / "timing.cache"
    assert with_cache(path).state == "new"
    assert path.read_bytes() and [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("content", [b"my notes", b"\x00" * 5000], ids=["text", "zeros"])
def test_a_file_that_is_no_timing_cache_is_never_overwritten(content, rtx, tmp_path, caplog):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="rtdetr_tool"):
        assert with_cache(path).state == "not taken"
    assert path.read_bytes() == content
    assert f"{path}: it is not a timing cache" in caplog.text and "Delete it to start from scratch" in caplog.text


def test_a_timing_cache_that_cannot_be_read_is_told(rtx, tmp_path):
    loaded = load_library("tensorrt_rtx")
    with loaded.listening() as messages, pytest.raises(UserError, match=r"timing_cache: .* cannot be read"):
        TimingCache(tmp_path, loaded, usable=True).attach(None, messages)


# Choosing the library


def hide(monkeypatch, *modules):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def test_without_a_library_the_pip_commands_are_given(monkeypatch):
    hide(monkeypatch, "tensorrt", "tensorrt_rtx")
    with pytest.raises(UserError) as error:
        choose_backend("auto", gpu=True)
    assert 'pip install "rtdetr-tool[tensorrt]"' in str(error.value)
    assert 'pip install "rtdetr-tool[tensorrt-rtx]"' in str(error.value)
    with pytest.raises(UserError) as error:
        choose_backend("auto", gpu=False)
    assert "tensorrt-rtx" in str(error.value) and "rtdetr-tool[tensorrt]" not in str(error.value)
    for name, extra in (("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx")):
        with pytest.raises(UserError, match=rf'is not installed\. .*pip install "rtdetr-tool\[{extra}\]"'):
            choose_backend(name, gpu=True)


def test_auto_takes_what_is_installed_and_fits(rtx, monkeypatch):
    hide(monkeypatch, "tensorrt")
    for gpu, capabilities in ((False, ("SM89",)), (True, ()), (True, ("SM89",))):
        assert choose_backend("auto", gpu, capabilities).name == "tensorrt_rtx"


def test_tensorrt_builds_for_the_gpu_present_only():
    with pytest.raises(UserError, match=r"builds only for the GPU of this machine.*backend=tensorrt_rtx"):
        choose_backend("tensorrt", gpu=True, compute_capabilities=("SM89",))


def test_an_unknown_backend_lists_the_known_ones():
    with pytest.raises(UserError, match="'trt' is invalid; expected one of auto, tensorrt, tensorrt_rtx"):
        choose_backend("trt", gpu=True)


def test_the_report_is_plain_data(rtx, toy_onnx):
    report = rtx.build(toy_onnx(), settings()).report
    assert json.loads(json.dumps(report)) == report
