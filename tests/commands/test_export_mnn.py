"""`rtdetr export export.format=mnn`, and other commands on the exported files; requires the extra `mnn`."""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.errors import CheckpointError, RtdetrError
from rtdetr_tool.formats.mnn.convert import save
from rtdetr_tool.formats.mnn.file import read
from rtdetr_tool.formats.mnn.runtime import run_once
from rtdetr_tool.formats.onnx.file import read_onnx

pytest.importorskip("MNN", reason="the converter is an extra: mnn")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(tmp_path_factory, make_exported):
    return make_exported(tmp_path_factory.mktemp("mnn"), "mnn", notes="Grüße", backbone="resnet_18")


def test_the_file_is_verified_at_two_batch_sizes_and_has_its_metadata(shared):
    assert [row["batch"] for row in shared.first["differences"]] == [1, 3]
    for row in shared.first["differences"]:
        assert row["score"] < 1e-4 and row["box"] < 1e-4 and row["unmatched"] == 0
    assert (shared.first["batch"], shared.first["data_type"]) == ("dynamic", "FP32")
    file = read(shared.file)
    assert file.description["names"] == {"1": "cat"} and file.description["notes"] == "Grüße"
    assert (file.interface.batch, file.interface.size, file.interface.classes) == (None, (64, 64), 2)


def test_commands_and_the_python_api_run_it(shared):
    shared.check_agreement()


@pytest.mark.parametrize(("precision", "share"), [("FP16", 0.55), ("INT8", 0.35)])
def test_weights_of_lower_precision_are_smaller_and_state_what_they_change(precision, share, shared):
    options = (f"export.mnn.data_type={precision}", "export.mnn.max_cost=1")
    code, file = shared.export(f"{precision}.mnn", *options)
    assert code == 0
    report = shared.report()
    assert report["data_type"] == precision and 0 < report["cost"] < 1
    assert report["bytes"] == file.stat().st_size < share * shared.first["bytes"]
    assert read(file).description["precision"] == precision


def test_above_the_maximum_cost_no_file_is_written(shared, capsys):
    code, file = shared.export("dear.mnn", "export.mnn.data_type=INT8", "export.mnn.max_cost=0")
    assert code == 1 and not file.exists()
    assert "export.mnn.max_cost is 0" in capsys.readouterr().err


def test_nothing_is_printed_to_standard_output(shared, capfd):
    capfd.readouterr()
    assert shared.run("export", f"export.checkpoint={shared.weights}", "export.format=mnn", "export.overwrite=true",
                      f"export.onnx_file={shared.folder / 'again.mnn'}") == 0  # fmt: skip
    assert "MNN" not in capfd.readouterr().out


def test_an_exported_backbone_returns_features(shared):
    code, file = shared.export("backbone.mnn", "export.backbone_only=true")
    assert code == 0
    shapes = {name: tuple(level.shape) for name, level in run_once(file, torch.rand(1, 3, 64, 64)).items()}
    assert shapes == {"features": (1, 16, 8, 8), "features_1": (1, 16, 4, 4), "features_2": (1, 16, 2, 2)}
    with pytest.raises(CheckpointError, match=r"exported with export\.backbone_only"):
        read(file)


@pytest.mark.parametrize("masks", [False, True])
def test_an_rfdetr_is_verified_too(masks, export_rfdetr):
    _, _, (row,) = export_rfdetr("mnn", "export.batch_size=1", masks=masks)
    assert row["score"] < 1e-4 and row["box"] < 1e-4 and row["mask"] < 1e-3 and row["unmatched"] == 0


@pytest.mark.parametrize("damage", ["truncated", "zeros", "text", "empty"])
def test_a_damaged_file_ends_in_one_message(damage, shared, tmp_path):
    content = shared.file.read_bytes()
    bad = {"truncated": content[:-1000], "zeros": bytes(5000), "text": b"<html></html>" * 99, "empty": b""}[damage]
    (tmp_path / "bad.mnn").write_bytes(bad)
    with pytest.raises(CheckpointError, match="it is no MNN file, or it is truncated or corrupted"):
        read(tmp_path / "bad.mnn")


def test_a_file_of_another_program_ends_in_one_message(shared, tmp_path):
    content = shared.file.read_bytes().replace(b'{"inputs": ', b'{"entries":')
    (tmp_path / "other.mnn").write_bytes(content)
    with pytest.raises(CheckpointError, match="has inputs none"):
        read(tmp_path / "other.mnn")
    (tmp_path / "other.mnn").write_bytes(content.replace(b'{"entries":', b"[" * 11))
    with pytest.raises(CheckpointError, match="does not describe its inputs and outputs"):
        read(tmp_path / "other.mnn")


def test_a_graph_that_mnn_cannot_convert_is_an_error_with_its_reason(shared, tmp_path):
    assert shared.run("export", f"export.checkpoint={shared.weights}", "export.overwrite=true",
                      f"export.onnx_file={shared.folder / 'graph.onnx'}") == 0  # fmt: skip
    graph = read_onnx(shared.folder / "graph.onnx")
    graph.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(RtdetrError, match=r"MNN \d.* cannot convert this model: .*"):
        save(graph, {}, tmp_path / "model.mnn")
