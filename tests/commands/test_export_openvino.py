"""`rtdetr export export.format=openvino`, and the commands that run what it wrote."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

from rtdetr_tool.errors import CheckpointError, RtdetrError
from rtdetr_tool.formats.openvino import agreement, export, runtime
from rtdetr_tool.formats.openvino.export import save
from rtdetr_tool.formats.openvino.file import read, weights_path
from rtdetr_tool.formats.openvino.runtime import OpenvinoRuntime, run_once
from tests.formats.openvino_faults import has_known_faults

openvino = pytest.importorskip("openvino", reason="an extra: openvino")

needs_vnni = pytest.mark.skipif(runtime.lacks_vnni(), reason="INT8 sums saturate on this processor")


@pytest.fixture(scope="module")
def shared(tmp_path_factory, make_exported):
    return make_exported(tmp_path_factory.mktemp("openvino"), "openvino", notes="'a <note> & more'")


def test_the_file_is_verified_at_two_batch_sizes_and_has_its_metadata(shared):
    assert [row["batch"] for row in shared.first["differences"]] == [1, 3]
    for row in shared.first["differences"]:
        assert row["score"] < 1e-4 and row["box"] < 1e-4 and row["unmatched"] == 0
    assert (shared.first["batch"], shared.first["data_type"]) == ("dynamic", "FP32")
    size = shared.file.stat().st_size + weights_path(shared.file).stat().st_size
    assert shared.first["bytes"] == pytest.approx(size, rel=0.01)
    description = read(shared.file).description
    assert description["names"] == {"1": "cat"} and description["notes"] == "a <note> & more"


def test_commands_and_the_python_api_run_it(shared):
    shared.check_agreement()
    assert shared.run("inference", f"inference.checkpoint={shared.file}", "inference.conf_threshold=0.0") == 0
    assert len(list((shared.folder / "results/inference/labels").iterdir())) == 6


@pytest.mark.slow
def test_an_rfdetr_is_verified_too(export_rfdetr):
    _, _, rows = export_rfdetr("openvino")
    assert all(row["score"] < 1e-4 and row["box"] < 1e-4 and row["unmatched"] == 0 for row in rows)


@pytest.mark.parametrize(
    ("precision", "batch"),
    [
        pytest.param("FP16", -1, marks=pytest.mark.slow),
        pytest.param("BF16", -1, marks=pytest.mark.slow),
        pytest.param("INT8", -1, marks=[needs_vnni, pytest.mark.slow]),
        pytest.param("INT8", 3, marks=needs_vnni),  # the second batch of 4 images is padded
    ],
)
def test_a_lower_precision_states_what_it_changes(precision, batch, shared, monkeypatch, caplog):
    saved, original = [], export.save
    monkeypatch.setattr(
        export, "save", lambda graph, *rest, **more: saved.append(graph) or original(graph, *rest, **more)
    )
    code, file = shared.export(
        f"{precision}_{batch}.xml", f"export.openvino.data_type={precision}", "export.openvino.max_cost=1",
        "export.openvino.calibration_images=4", f"export.openvino.calibration={shared.folder / 'images'}",
        f"export.batch_size={batch}",
    )  # fmt: skip
    assert code == 0
    report = shared.report()
    assert report["data_type"] == precision and 0 < report["cost"] < 1
    weights, usual = weights_path(file).stat().st_size, weights_path(shared.file).stat().st_size
    assert {"FP16": weights < 0.6 * usual, "BF16": weights == usual, "INT8": weights < 0.6 * usual}[precision]
    assert OpenvinoRuntime(read(file)).name.endswith("(bf16)") == (precision == "BF16")
    if precision == "INT8":
        assert report["calibration"]["images"] == 4 and report["quantized"] > 40
        assert 0.8 < report["error_ratio"] < 1.25
        written = {tensor.name: tensor.data_type for tensor in saved[-1].graph.initializer}
        assert any(name.endswith("/bias") for name in written)  # of layers with a bias of zeros
        assert onnx.TensorProto.UINT8 in written.values()
    monkeypatch.setattr(runtime, "lacks_vnni", lambda: True)
    monkeypatch.setattr(runtime, "lacks_bfloat16", lambda: True)
    OpenvinoRuntime(read(file))
    assert ("has no VNNI instructions" in caplog.text) == (precision == "INT8")
    assert ("has no bfloat16 instructions" in caplog.text) == (precision == "BF16")
    assert shared.evaluated(file)["mAP"] is not None


@has_known_faults
@pytest.mark.parametrize("vnni", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_int8_graph_that_openvino_computes_wrongly_is_not_written(vnni, shared, monkeypatch, capsys):
    monkeypatch.setattr(export, "with_unsigned_activations", lambda model: model)
    monkeypatch.setattr(agreement, "lacks_vnni", lambda: not vnni)
    code, file = shared.export("wrong.xml", "export.openvino.data_type=INT8", "export.openvino.max_cost=1")
    message = " ".join(capsys.readouterr().err.split())
    assert code == 1 and not file.exists() and not weights_path(file).exists()
    assert re.search(
        r"wrong\.xml was not written: OpenVINO 2\S+ computes the INT8 graph incorrectly\. Its error relative to "
        r"FP32 is [\d.]+ times that of onnxruntime; the limit is 1\.5\.",
        message,
    )
    assert ("another version of OpenVINO" in message) == vnni
    assert ("no VNNI instructions" in message and "export on a processor with VNNI" in message) == (not vnni)


def test_above_the_maximum_cost_no_file_is_written(shared, capsys):
    code, file = shared.export("dear.xml", "export.openvino.data_type=BF16", "export.openvino.max_cost=0")
    assert code == 1
    assert "export.openvino.max_cost is 0" in capsys.readouterr().err
    assert not file.exists() and not weights_path(file).exists()


@pytest.mark.slow
def test_a_static_batch_is_padded_and_an_exported_backbone_returns_features(shared):
    code, file = shared.export("two.xml", "export.batch_size=2")
    assert code == 0
    runtime = OpenvinoRuntime(read(file))
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    usual = OpenvinoRuntime(read(shared.file)).predict(images)
    torch.testing.assert_close(runtime.predict(images).logits, usual.logits, atol=1e-4, rtol=0)
    code, file = shared.export("backbone.xml", "export.backbone_only=true")
    assert code == 0
    shapes = {name: tuple(level.shape) for name, level in run_once(file, torch.rand(1, 3, 64, 64)).items()}
    assert sorted(shapes.values()) == [(1, 16, 2, 2), (1, 16, 4, 4), (1, 16, 8, 8)]


def test_a_dynamic_batch_is_compiled_for_the_first_size_and_once_for_all_others(shared, monkeypatch):
    sizes, original = [], runtime.compiled

    def record(model, precision):
        sizes.append(model.inputs[0].partial_shape[0])
        return original(model, precision)

    monkeypatch.setattr(runtime, "compiled", record)
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    opened = OpenvinoRuntime(read(shared.file))
    whole = opened.predict(images)
    for size in (1, 3, 4, 2):
        torch.testing.assert_close(opened.predict(images[:size]).logits, whole.logits[:size], atol=1e-4, rtol=0)
    assert [size.is_dynamic for size in sizes] == [False, True]
    assert sizes[0].get_length() == 4


TWO_DETECTORS = """
import gc, os, signal, sys
from PIL import Image
from rtdetr_tool import Detector

first, second = (Detector.from_checkpoint(sys.argv[1]) for _ in range(2))
for detector in (first, second):
    detector.predict(Image.new("RGB", (64, 64)))
del detector
for name in ("first", "second"):  # not in the reverse order
    del globals()[name]
    gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_are_handled_after_two_detectors_are_freed(shared):
    """With a `Core` of its own for each detector, OpenVINO leaves signal handlers without a stack."""
    code = [sys.executable, "-c", TWO_DETECTORS, str(shared.file)]
    done = subprocess.run(code, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


class TestBadFiles:
    @pytest.fixture
    def copy(self, shared, tmp_path):
        for file in (shared.file, weights_path(shared.file)):
            shutil.copy(file, tmp_path / file.name)
        return tmp_path / shared.file.name

    def test_missing(self, tmp_path):
        with pytest.raises(CheckpointError, match="There is no OpenVINO file"):
            read(tmp_path / "no.xml")

    def test_without_its_weights(self, copy):
        weights_path(copy).unlink()
        with pytest.raises(CheckpointError, match=r"stores its weights in model\.bin, which does not exist"):
            read(copy)

    def test_truncated_weights(self, copy):
        weights_path(copy).write_bytes(weights_path(copy).read_bytes()[:1000])
        with pytest.raises(CheckpointError, match="may be corrupted"):
            OpenvinoRuntime(read(copy))

    def test_truncated_graph(self, copy):
        copy.write_bytes(copy.read_bytes()[:20_000])
        with pytest.raises(CheckpointError, match="may be corrupted"):
            read(copy)

    @pytest.mark.parametrize("content", [b"", b"<html></html>", b"\0" * 4096])
    def test_not_a_graph(self, content, copy):
        copy.write_bytes(content)
        with pytest.raises(CheckpointError, match="is not an OpenVINO file"):
            read(copy)

    def test_a_graph_that_is_no_detector(self, copy):
        copy.write_bytes(copy.read_bytes().replace(b"pred_boxes", b"other_name"))
        with pytest.raises(CheckpointError, match="other_name"):
            read(copy)

    def test_a_loop_is_refused(self, tmp_path):
        from openvino import opset13 as ops

        state = ops.parameter([1], np.float32)
        body = openvino.Model([ops.add(state, np.float32([1])), ops.constant(True)], [state])
        loop = ops.loop(ops.constant(np.int64(2**62)), ops.constant(True))
        loop.set_function(body)
        loop.set_special_body_ports([-1, 1])
        start = ops.parameter([1], np.float32, name="inputs")
        loop.set_merged_input(state, start.output(0), body.get_results()[0].output(0))
        out = loop.get_iter_value(body.get_results()[0].output(0), -1)
        openvino.save_model(openvino.Model([out], [start]), tmp_path / "loop.xml")
        with pytest.raises(CheckpointError, match="Loop, which may never end"):
            read(tmp_path / "loop.xml")

    def test_damaged_metadata_are_ignored(self, copy):
        text = copy.read_bytes()
        start = text.index(b"rtdetr_tool")
        copy.write_bytes(text[:start] + text[start:].replace(b"{", b"[", 1))
        assert read(copy).description == {}

    def test_a_precision_of_its_own(self, shared, capsys):
        assert shared.run("evaluate", f"evaluate.checkpoint={shared.file}", "evaluate.precision=bf16") == 2
        assert "which has a fixed precision" in capsys.readouterr().err

    def test_a_missing_package_names_the_pip_command(self, shared, monkeypatch, capsys):
        import rtdetr_tool.formats.table as table

        real = table.find_spec
        monkeypatch.setattr(table, "find_spec", lambda name: None if name == "openvino" else real(name))
        code, _ = shared.export("x.xml")
        assert code == 2
        assert 'pip install "rtdetr-tool[openvino]"' in capsys.readouterr().err
        assert shared.run("evaluate", f"evaluate.checkpoint={shared.file}") == 2
        assert 'pip install "rtdetr-tool[openvino]"' in capsys.readouterr().err


def test_no_usage_statistics_are_sent(shared, monkeypatch):
    telemetry = pytest.importorskip("openvino_telemetry")
    sent = []
    for name in ("start_session", "send_event", "send_error", "send_stack_trace"):
        monkeypatch.setattr(telemetry.Telemetry, name, lambda *args, **kwargs: sent.append(args))
    code, file = shared.export("quiet.xml")
    OpenvinoRuntime(read(file)).predict(torch.rand(1, 3, 64, 64))
    assert code == 0 and sent == []


def test_a_graph_that_openvino_cannot_convert_is_an_error_with_its_reason(tmp_path):
    shape = [1, 3]
    for operator, message in (
        ("NoSuchOperator", "No conversion rule found for operations: NoSuchOperator"),
        ("MatMul", "First input dimension=3 at COL_INDEX_DIM=1 doesn't match the second input dimension=1"),
    ):
        node = onnx.helper.make_node(operator, ["x", "x"], ["y"])
        values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
        graph = onnx.helper.make_model(onnx.helper.make_graph([node], "graph", values[:1], values[1:]))
        with pytest.raises(RtdetrError, match=r"OpenVINO \d.* cannot convert this model: Model wasn't ") as caught:
            save(graph, {}, tmp_path / "model.xml")
        assert message in str(caught.value)
        assert ".cpp" not in str(caught.value) and "\n" not in str(caught.value)
