"""`rtdetr export`, and evaluate and inference on the exported files."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml

from rtdetr_tool.cli import main
from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.onnx.export import export_graph
from rtdetr_tool.formats.onnx.file import description_of
from rtdetr_tool.spec import ExportSpec
from rtdetr_tool.workflows.export import choose_device


@pytest.fixture(scope="module")
def exported(tmp_path_factory, make_project):
    """A project with an exported checkpoint; shared, so tests copy what they change."""
    project = make_project(tmp_path_factory.mktemp("exported"))
    project.weights, project.file = project.checkpoint(lively=True), project.folder / "out" / "model.onnx"
    overrides = [f"export.checkpoint={project.weights}", f"export.onnx_file={project.file}", "export.notes=for line 3"]
    assert project.run("export", *overrides) == 0
    return project


@pytest.fixture
def copied(exported, project):
    """A private copy of the project with the same graph."""
    project.file = project.folder / "model.onnx"
    project.file.write_bytes(exported.file.read_bytes())
    return project


def test_export_writes_a_verified_file_and_a_report(exported):
    report = json.loads((exported.folder / "results" / "export" / "export.json").read_text())
    assert report["pictures"] == "dataset.val_data_sources"
    assert [difference["batch"] for difference in report["differences"]] == [1, 3]
    for difference in report["differences"]:
        assert difference["score"] < 1e-4 and difference["box"] < 1e-4 and difference["unmatched"] == 0
        assert difference["images"] + difference["ambiguous"] == 6 and difference["images"] > 0
    assert report["bytes"] == exported.file.stat().st_size
    assert (report["batch"], report["opset"], report["input_size"]) == ("dynamic", 17, [64, 64])
    assert exported.status("export")[-1]["status"] == "SUCCESS"
    assert [p.name for p in exported.file.parent.iterdir()] == ["model.onnx"]


def test_the_file_has_its_metadata(exported):
    description = description_of(onnx.load(exported.file))
    assert description["names"] == {"1": "cat"}
    assert description["input_size"] == [64, 64]
    assert description["notes"] == "for line 3"
    assert "pixel / 255" in description["normalisation"]
    assert len(description["spec_sha256"]) == 64
    assert description["rtdetr_tool"]["spec"]["model"]["hidden_dim"] == 16
    text = json.dumps(description)
    assert "results_dir" not in text and "image_dir" not in text, "paths stay at home"


def evaluated(project, *overrides: str) -> tuple[dict, list[dict]]:
    assert project.run("evaluate", "evaluate.batch_size=4", *overrides) == 0
    folder = project.folder / "results" / "evaluate"
    rows = json.loads((folder / "predictions.json").read_text())
    return json.loads((folder / "results.json").read_text()), sorted(
        rows, key=lambda row: (row["image_id"], row["category_id"], round(row["score"], 4), row["bbox"][0])
    )


def assert_same_results(one, other) -> None:
    assert len(one[1]) == len(other[1]) > 0
    for row, same in zip(one[1], other[1], strict=True):
        assert row["category_id"] == same["category_id"]
        np.testing.assert_allclose(row["score"], same["score"], atol=1e-4)
        np.testing.assert_allclose(row["bbox"], same["bbox"], atol=1e-2)
    for name, value in one[0].items():
        if isinstance(value, float):
            assert other[0][name] == pytest.approx(value, abs=1e-4)


def test_evaluate_scores_checkpoint_and_graph_equally(exported, copied):
    expected = evaluated(exported, f"evaluate.checkpoint={exported.weights}")
    data = {"workers": 0, "test_data_sources": copied.spec["dataset"]["test_data_sources"]}
    copied.spec_file.write_text(json.dumps({"results_dir": copied.spec["results_dir"], "dataset": data}))
    # The graph contains architecture, classes and size.
    assert_same_results(evaluated(copied, f"evaluate.checkpoint={copied.file}"), expected)


def test_a_graph_with_all_options(exported, project, capsys):
    """Six images in steps of four on a static batch of two, with post-processing, another size and DeepStream files."""
    file = project.folder / "all" / "model.onnx"
    options = ["batch_size=2", "include_postprocess=true", "input_height=96", "input_width=128",
               "serialize_nvdsinfer=true", f"onnx_file={file}", f"results_dir={project.folder / 'elsewhere'}",
               f"checkpoint={exported.weights}"]  # fmt: skip
    assert project.run("export", *(f"export.{option}" for option in options), "inference.conf_threshold=0.3") == 0
    assert json.loads((project.folder / "elsewhere" / "export.json").read_text())["batch"] == 2
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [2, 3, 96, 128]
    assert {output.name: output.shape for output in session.get_outputs()} == {
        "pred_logits": [2, 8, 2], "pred_boxes": [2, 8, 4], "boxes": [2, 8, 4], "scores": [2, 8], "labels": [2, 8]
    }  # fmt: skip
    assert (file.parent / "labels.txt").read_text() == "background\ncat\n"
    config = yaml.safe_load((file.parent / "nvdsinfer_config.yaml").read_text())
    assert config["property"]["onnx-file"] == "model.onnx"
    assert config["property"]["infer-dims"] == "3;96;128"
    assert config["class-attrs-all"] == {"pre-cluster-threshold": 0.3, "topk": 8}

    requested = ["evaluate.input_height=96", "evaluate.input_width=128"]
    expected = evaluated(project, f"evaluate.checkpoint={exported.weights}", *requested)
    assert_same_results(evaluated(project, f"evaluate.checkpoint={file}", *requested), expected)


@pytest.mark.slow
def test_weights_above_the_limit_of_protobuf_are_stored_next_to_the_graph(export, project, monkeypatch):
    with monkeypatch.context() as small:
        small.setattr("rtdetr_tool.formats.onnx.file.LARGEST_FILE", 100_000)
        code, file = export()
    assert code == 0
    weights = file.with_name("model.onnx.data")
    assert sorted(file.parent.iterdir()) == [file, weights]
    assert weights.stat().st_size > 100_000 > file.stat().st_size - 100_000
    assert weights.stat().st_mode == file.stat().st_mode
    report = json.loads((project.folder / "results" / "export" / "export.json").read_text())
    assert report["bytes"] == file.stat().st_size + weights.stat().st_size
    assert report["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    result = evaluated(project, f"evaluate.checkpoint={file}")
    assert_same_results(result, evaluated(project, f"evaluate.checkpoint={report['checkpoint']}"))

    assert export("export.overwrite=true")[0] == 0
    assert list(file.parent.iterdir()) == [file], "weights of the graph before this one"
    file.unlink()
    weights.write_bytes(b"left over")
    assert export()[0] == 0 and not weights.exists()


def test_inference_runs_on_the_graph(copied):
    assert copied.run("inference", f"inference.checkpoint={copied.file}", "inference.conf_threshold=0.0") == 0
    labels = sorted((copied.folder / "results" / "inference" / "labels").iterdir())
    assert len(labels) == 6
    assert all(line.startswith("cat ") for line in labels[0].read_text().splitlines())


@pytest.fixture
def export(exported, project):
    """Runs the command with overrides; returns exit code and file."""

    def run(*overrides: str):
        file = project.folder / "out" / "model.onnx"
        code = project.run("export", f"export.checkpoint={exported.weights}", f"export.onnx_file={file}", *overrides)
        return code, file

    return run


@pytest.mark.slow
def test_an_existing_file_is_only_overwritten_on_request(export, project, capsys):
    file = project.folder / "out" / "model.onnx"
    file.parent.mkdir()
    file.write_bytes(b"precious")
    assert export()[0] == 2
    assert "export.overwrite=true" in capsys.readouterr().err
    assert file.read_bytes() == b"precious"
    assert export("export.overwrite=true")[0] == 0
    onnx.checker.check_model(onnx.load(file))


def test_above_the_tolerance_no_file_is_written(export, project, capsys, monkeypatch):
    def with_other_weights(*arguments):
        graph = export_graph(*arguments)
        weight = next(tensor for tensor in graph.graph.initializer if len(tensor.dims) == 4)
        weight.CopyFrom(onnx.numpy_helper.from_array(1.5 * onnx.numpy_helper.to_array(weight), weight.name))
        return graph

    monkeypatch.setattr("rtdetr_tool.formats.onnx.export.export_graph", with_other_weights)
    code, file = export()
    assert code == 1
    assert "was not written: its detections differ from PyTorch's" in capsys.readouterr().err
    assert list(file.parent.iterdir()) == []
    assert project.status("export")[-1]["status"] == "FAILURE"


@pytest.mark.slow
def test_synthetic_images_are_used_if_the_spec_has_none(exported, project, capsys):
    file = project.folder / "model.onnx"
    project.spec["dataset"] = {"num_classes": 2}
    project.write()
    assert project.run("export", f"export.checkpoint={exported.weights}", f"export.onnx_file={file}") == 0
    assert "using synthetic images" in capsys.readouterr().err
    assert json.loads((project.folder / "results/export/export.json").read_text())["pictures"] == "drawn"


@pytest.mark.slow
def test_a_tolerance_below_rounding_is_reported(export, capsys):
    assert export("export.tolerance=1e-30")[0] == 1
    assert "on every image noise below a gray level changes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gpus", "on_cpu", "gpu_id", "expected"),
    [(0, False, 0, "cpu"), (2, False, 1, "cuda:1"), (2, True, 1, "cpu"), (0, False, 3, "cpu")],
)
def test_a_gpu_is_used_if_available(gpus, on_cpu, gpu_id, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert str(choose_device(ExportSpec(on_cpu=on_cpu, gpu_id=gpu_id))) == expected


def test_a_missing_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"export.gpu_id: 1 is invalid; expected 0 to 0"):
        choose_device(ExportSpec(gpu_id=1))


@pytest.mark.slow
def test_verbose_shows_the_output_of_the_exporter(export, capfd):
    assert export("export.batch_size=1")[0] == 0
    silent = capfd.readouterr()
    assert export("export.batch_size=1", "export.verbose=true", "export.overwrite=true")[0] == 0
    loud = capfd.readouterr()
    assert "aten::" not in silent.out + silent.err and "Warning" not in silent.out + silent.err
    assert len(loud.out + loud.err) > 2 * len(silent.out + silent.err)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["export.opset_version=11"], "export.opset_version"),
        (["export.opset_version=99"], "export.opset_version"),
        (["export.batch_size=0"], "export.batch_size: 0 is invalid; expected -1 (dynamic) or at least 1"),
        (["export.input_width=100", "export.input_height=64"], "a multiple of 32"),
        (["export.format=xdl"], "export.format"),
        (["export.checkpoint=/no/such.pth"], "/no/such.pth does not exist"),
        (["export.onnx_file=model.pt"], "expected a file that ends in .onnx"),
        (["export.onnx_file=???"], "export.onnx_file"),
        (["export.is_quantized=true"], "quantized"),
        (["export.input_channel=1"], "export.input_channel: 1 is invalid; expected 3"),
        (
            ["dataset.augmentation.preserve_aspect_ratio=true"],
            "preserve_aspect_ratio is True in the spec, but False in",
        ),
    ],
)
def test_wrong_input_is_one_message(overrides, message, export, capsys):
    code, file = export(*overrides)
    assert code == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert not file.exists()


def test_a_padded_input_is_square(project, capsys):
    project.spec["dataset"]["augmentation"]["preserve_aspect_ratio"] = True
    project.write()
    file = project.folder / "model.onnx"
    given = [f"export.checkpoint={project.checkpoint()}", f"export.onnx_file={file}", "export.input_width=64"]
    assert project.run("export", *given, "export.input_height=96") == 2
    assert "they must be equal" in capsys.readouterr().err and not file.exists()


@pytest.mark.parametrize("command", ["evaluate", "inference"])
def test_a_graph_is_not_run_on_images_prepared_in_another_way(copied, command, capsys):
    given = f"{command}.checkpoint={copied.file}"
    assert copied.run(command, given, "dataset.augmentation.preserve_aspect_ratio=true") == 2
    assert "preserve_aspect_ratio is True in the spec, but False in the checkpoint" in capsys.readouterr().err
    assert copied.run(command, given, f"{command}.input_width=96") == 2
    assert f"{command}.input_width requests 64 x 96" in capsys.readouterr().err


class TestForeignFiles:
    """Invalid ONNX files, ONNX files without a detector, and detectors that do not fit the data."""

    def evaluate(self, project, file, *overrides):
        return project.run("evaluate", f"evaluate.checkpoint={file}", *overrides)

    @pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x07" * 50])
    def test_a_file_that_is_not_onnx_is_refused(self, content, project, capsys):
        file = project.folder / "x.onnx"
        file.write_bytes(content)
        assert self.evaluate(project, file) == 2
        assert "not an ONNX file" in capsys.readouterr().err

    def test_a_missing_file_names_its_neighbors(self, copied, capsys):
        assert self.evaluate(copied, copied.file.with_name("modell.onnx")) == 2
        assert "contains model.onnx" in capsys.readouterr().err

    def test_other_inputs_and_outputs_are_named(self, project, capsys):
        value = onnx.helper.make_tensor_value_info
        node = onnx.helper.make_node("Identity", ["images"], ["output0"])
        graph = onnx.helper.make_graph(
            [node], "g", [value("images", 1, [1, 3, 8, 8])], [value("output0", 1, [1, 3, 8, 8])]
        )
        file = project.folder / "yolo.onnx"
        onnx.save(onnx.helper.make_model(graph), file)
        assert self.evaluate(project, file) == 2
        shown = capsys.readouterr().err
        assert "images [1, 3, 8, 8]" in shown and "output0" in shown and "pred_logits, pred_boxes" in shown

    def test_a_graph_without_our_metadata_uses_the_classes_of_the_dataset(self, copied):
        model = onnx.load(copied.file)
        del model.metadata_props[:]
        foreign = copied.folder / "foreign.onnx"
        onnx.save(model, foreign)
        assert self.evaluate(copied, foreign) == 0
        foreign_results = json.loads((copied.folder / "results/evaluate/results.json").read_text())
        assert self.evaluate(copied, copied.file) == 0
        assert json.loads((copied.folder / "results/evaluate/results.json").read_text()) == foreign_results

    def test_a_different_number_of_classes_than_in_the_spec_is_refused(self, copied, capsys):
        assert self.evaluate(copied, copied.file, "dataset.num_classes=7") == 2
        assert "dataset.num_classes is 7 in the spec, but 2 in the checkpoint" in capsys.readouterr().err

    def test_more_classes_in_the_dataset_than_in_the_graph_are_refused(self, copied, capsys):
        copied.coco["categories"] += [{"id": 9, "name": "bird"}]
        copied.write()
        assert self.evaluate(copied, copied.file) == 0  # there are no birds
        copied.coco["annotations"][0]["category_id"] = 9
        copied.write()
        assert self.evaluate(copied, copied.file) == 2
        assert "bird" in capsys.readouterr().err

    def test_another_input_size_than_that_of_the_graph_is_refused(self, copied, capsys):
        assert self.evaluate(copied, copied.file, "dataset.augmentation.eval_spatial_size=[96,96]") == 2
        assert "only supports inputs of 64 x 64" in capsys.readouterr().err
        assert self.evaluate(copied, copied.file, "evaluate.input_height=96", "evaluate.input_width=96") == 2
        assert "only supports inputs of 64 x 64" in capsys.readouterr().err

    @pytest.mark.parametrize("command", ["evaluate", "inference"])
    def test_a_missing_provider_is_reported(self, command, copied, capsys):
        overrides = [f"{command}.checkpoint={copied.file}", f"{command}.onnx_provider=tensorrt"]
        assert copied.run(command, *overrides) == 2
        assert "onnxruntime-gpu" in capsys.readouterr().err

    def test_an_operator_unknown_to_onnxruntime_is_reported(self, copied, capsys):
        """TAO's exports from a GPU contain a TensorRT plugin."""
        model = onnx.load(copied.file)
        node = next(node for node in model.graph.node if node.op_type == "GridSample")
        node.op_type = "MultiscaleDeformableAttnPlugin_TRT"
        onnx.save(model, copied.file)
        assert self.evaluate(copied, copied.file) == 2
        assert "MultiscaleDeformableAttnPlugin_TRT" in capsys.readouterr().err

    def test_a_newer_operator_set_is_reported(self, copied, capsys):
        model = onnx.load(copied.file)
        model.opset_import[0].version = 99
        onnx.save(model, copied.file)
        assert self.evaluate(copied, copied.file) == 2
        shown = capsys.readouterr().err
        assert "operator set 99" in shown and "Traceback" not in shown

    def test_an_unknown_kind_of_file_is_refused(self, project, capsys):
        file = project.folder / "model.mlmodel"
        file.write_bytes(b"x")
        assert self.evaluate(project, file) == 2
        assert ".onnx" in capsys.readouterr().err


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["export", "-h"])
    assert "export.onnx_file=" in capsys.readouterr().out
