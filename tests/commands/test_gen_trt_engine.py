"""`rtdetr gen_trt_engine`: profiles, calibration images, scores, and engines built by TensorRT-RTX."""

from __future__ import annotations

import json

import onnx
import pytest
import torch

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.export_model import ExportModel
from rtdetr_tool.formats.onnx.export import export_graph
from rtdetr_tool.formats.onnx.file import interface_of
from rtdetr_tool.formats.opening import open_detector
from rtdetr_tool.spec import read_spec
from rtdetr_tool.workflows.engine import build_settings, open_source
from rtdetr_tool.workflows.engine_precision import calibration_images


@pytest.fixture(scope="module")
def exported(tmp_path_factory, make_project):
    """A project with the graph of a detector with varied outputs."""
    project = make_project(tmp_path_factory.mktemp("graph"))
    weights, project.file = project.checkpoint(lively=True), project.folder / "model.onnx"
    overrides = [f"export.checkpoint={weights}", f"export.onnx_file={project.file}", "export.notes=for line 3"]
    assert project.run("export", *overrides) == 0
    assert project.run("evaluate", f"evaluate.checkpoint={weights}") == 0
    project.label_best_detections()
    static = ExportModel(open_detector(str(weights), read_spec(None)).detector).eval()
    project.static = project.folder / "static.onnx"
    onnx.save(export_graph(static, (64, 64), batch=2, opset=17), project.static)
    return project


@pytest.fixture
def generate(exported, project):
    """Runs the command on the shared graph with TensorRT-RTX; returns the exit code."""
    project.coco = exported.coco
    project.write()
    project.engine = project.folder / "out" / "model.engine"
    project.results = project.folder / "results" / "gen_trt_engine"

    def run(*overrides: str, onnx_file=exported.file) -> int:
        return project.run(
            "gen_trt_engine", f"gen_trt_engine.onnx_file={onnx_file}", f"gen_trt_engine.trt_engine={project.engine}",
            *(f"gen_trt_engine.{override}" for override in overrides),
        )  # fmt: skip

    return run


def loaded_for(project, *overrides: str):
    names = [f"gen_trt_engine.{override}" for override in overrides]
    return read_spec(
        str(project.spec_file),
        [f"gen_trt_engine.onnx_file={project.file}", "gen_trt_engine.trt_engine=x.engine", *names],
        "gen_trt_engine",
    )


class TestSettings:
    def settings(self, project, file, *overrides):
        loaded = loaded_for(project, *overrides)
        return build_settings(loaded, interface_of(onnx.load(file), file))

    def test_a_dynamic_graph_uses_the_profile_of_the_spec(self, exported):
        settings = self.settings(exported, exported.file)
        assert settings.batches(None) == (1, 1, 4)
        settings = self.settings(
            exported, exported.file,
            "tensorrt.min_batch_size=2", "tensorrt.opt_batch_size=3", "tensorrt.max_batch_size=8",
        )  # fmt: skip
        assert settings.batches(None) == (2, 3, 8)
        assert self.settings(exported, exported.file, "batch_size=6").batches(None) == (6, 6, 6)

    def test_a_static_graph_uses_its_own_batch_size(self, exported):
        """The default profile of 1, 1, 4 was not set by the user."""
        assert self.settings(exported, exported.static).batches(2) == (2, 2, 2)
        assert self.settings(exported, exported.static, "batch_size=2").batches(2) == (2, 2, 2)

    @pytest.mark.parametrize("override", ["tensorrt.max_batch_size=8", "batch_size=4"])
    def test_another_batch_size_than_that_of_a_static_graph_is_refused(self, override, exported):
        with pytest.raises(UserError, match="fixed batch of 2"):
            self.settings(exported, exported.static, override)

    def test_the_other_settings_are_used(self, exported):
        settings = self.settings(
            exported, exported.file, "tensorrt.workspace_size=77", "timing_cache=/tmp/x.cache", "verbose=true",
            "gpu_id=1", "compute_capability=[SM89,SM120]",
        )  # fmt: skip
        assert (settings.workspace_mb, str(settings.timing_cache), settings.verbose, settings.gpu_id) == (
            77, "/tmp/x.cache", True, 1
        )  # fmt: skip
        assert settings.compute_capabilities == ("SM89", "SM120")


class TestCalibrationPictures:
    def calibration_images(self, project, *overrides):
        loaded = loaded_for(project, *overrides)
        return calibration_images(open_source(loaded), loaded)

    def test_calibration_folders_are_preprocessed_like_evaluation(self, exported):
        result = self.calibration_images(
            exported, "tensorrt.data_type=INT8", f"tensorrt.calibration.cal_image_dir=[{exported.folder / 'images'}]",
            "tensorrt.calibration.cal_batch_size=2", "tensorrt.calibration.cal_batches=2",
        )  # fmt: skip
        shapes = [feed.shape for feed in result.feeds()]
        assert shapes == [(2, 3, 64, 64), (2, 3, 64, 64)]
        once, again = (torch.cat([torch.from_numpy(feed) for feed in result.feeds()]) for _ in range(2))
        assert torch.equal(once, again), "calibration is repeatable"
        assert once.min() >= 0 and once.max() <= 1 and once.max() > 0.5

    def test_without_a_folder_the_training_images_are_used(self, exported):
        """Not those of the validation set, on which the score is measured."""
        result = self.calibration_images(exported, "tensorrt.data_type=FP16")
        assert result.source.origin == "dataset.train_data_sources"
        assert result.count == 6

    def test_more_images_than_exist_are_refused(self, exported):
        with pytest.raises(UserError, match=r"cal_batches x cal_batch_size is 20, but there are only 6 images"):
            self.calibration_images(exported, "tensorrt.data_type=INT8", "tensorrt.calibration.cal_batches=20")

    def test_missing_images_are_refused_for_int8_only(self, exported, make_project, tmp_path):
        project = make_project(tmp_path)
        project.file = exported.file
        project.spec["dataset"] = {"num_classes": 2}
        project.write()
        with pytest.raises(UserError, match="cal_image_dir: required for INT8, but not set"):
            self.calibration_images(project, "tensorrt.data_type=INT8")
        assert self.calibration_images(project, "tensorrt.data_type=FP16") is None


class TestGraphs:
    def test_int8_writes_scored_graphs_and_a_report(self, generate, project, capsys):
        """Six images; the graphs are written below the results folder, and evaluate runs on each."""
        cache = project.folder / "calibration.json"
        options = [
            "tensorrt.data_type=INT8", "backend=none", "max_score_drop=1.0",
            "tensorrt.layers_precision=['Softmax:fp32','Conv:int8']", f"tensorrt.calibration.cal_cache_file={cache}",
        ]  # fmt: skip
        assert generate(*options) == 0
        shown = capsys.readouterr().err
        assert "points lost" in shown and "kept higher" in shown
        report = json.loads((project.results / "precision.json").read_text())
        assert list(report["scores"]) == ["FP32", "FP16", "INT8"]
        assert all(row["images"] == 6 for row in report["scores"].values())
        scores = {name: row["mAP"] for name, row in report["scores"].items()}
        assert scores["FP32"] > 0.5 and abs(scores["FP32"] - scores["FP16"]) < 0.1 and scores["INT8"] > 0.2, scores
        assert report["int8"]["nodes_int8"] > 0
        softmax = [node for node in report["fp16"]["kept"] if node["op_type"] == "Softmax"]
        assert softmax and all("layers_precision" in node["reason"] for node in softmax)
        assert cache.exists()
        sizes = [report["scores"][name]["bytes"] for name in ("FP32", "FP16", "INT8")]
        assert sizes[0] > 1.8 * sizes[1] and sizes[1] > 1.2 * sizes[2]
        for name in ("fp16", "int8"):
            file = project.results / f"model_{name}.onnx"
            assert project.run("evaluate", f"evaluate.checkpoint={file}") == 0
            result = json.loads((project.folder / "results/evaluate/results.json").read_text())
            # onnxruntime's integer kernels for CPUs round differently; FP16 is emulated exactly.
            tolerance = 0.1 if name == "int8" else 1e-9
            assert result["mAP"] == pytest.approx(report["scores"][name.upper()]["mAP"], abs=tolerance)
        assert not project.engine.exists()
        assert project.status("gen_trt_engine")[-1]["status"] == "SUCCESS"

    def test_a_loss_above_the_limit_prevents_the_build(self, generate, project, capsys, monkeypatch):
        import rtdetr_tool.commands.gen_trt_engine as command

        real = command.score_variants

        def with_a_better_fp32(variants, *others):
            real(variants, *others)
            variants[0].scores["mAP"] += 0.5

        monkeypatch.setattr(command, "score_variants", with_a_better_fp32)
        assert generate("tensorrt.data_type=FP16", "compute_capability=[SM89]", "max_score_drop=0.1") == 1
        shown = capsys.readouterr().err
        assert "FP16 loses " in shown and "expected at most 10.00" in shown and "No engine was built" in shown
        assert not project.engine.exists()

    def test_no_score_without_a_validation_set_or_on_request(self, generate, project, capsys):
        assert generate("tensorrt.data_type=FP32", "backend=none", "score_images=0") == 0
        assert "gen_trt_engine.max_score_drop: gen_trt_engine.score_images is 0" in capsys.readouterr().err
        report = json.loads((project.results / "precision.json").read_text())
        assert report["scores"] == {"FP32": None}

    def test_a_part_of_the_validation_set_is_scored_on_request(self, generate, project):
        assert generate("tensorrt.data_type=FP32", "backend=none", "score_images=4") == 0
        report = json.loads((project.results / "precision.json").read_text())
        assert report["scores"]["FP32"]["images"] == 4


class TestEngines:
    """Engines built ahead of time by TensorRT-RTX, without a GPU."""

    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("tensorrt_rtx")

    def test_an_engine_is_written_with_its_description(self, generate, project, capsys):
        assert generate("tensorrt.data_type=FP16", "compute_capability=[SM89,SM120]") == 0
        assert "layers" in capsys.readouterr().err
        description = json.loads((project.engine.parent / "model.engine.json").read_text())
        assert description["build"]["compute_capabilities"] == ["SM89", "SM120"]
        assert description["build"]["profile"]["inputs"] == {
            "min": [1, 3, 64, 64], "opt": [1, 3, 64, 64], "max": [4, 3, 64, 64]
        }  # fmt: skip
        assert description["build"]["precision"]["float16"] > 50
        assert description["names"] == {"1": "cat"}
        assert description["notes"] == "for line 3"
        assert description["precision"] == "FP16"
        assert set(description["scores"]) == {"FP32", "FP16"}
        assert len(description["onnx"]["sha256"]) == 64

        if not torch.cuda.is_available():
            assert project.run("evaluate", f"evaluate.trt_engine={project.engine}") == 2
            shown = capsys.readouterr().err
            assert "requires an NVIDIA GPU with its driver" in shown and "SM89, SM120" in shown

    @pytest.mark.slow
    def test_a_graph_without_our_metadata_is_built_too(self, exported, generate, project):
        """No metadata, no node names, static batch, as other exporters write."""
        model = onnx.load(exported.static)
        del model.metadata_props[:]
        for node in model.graph.node:
            node.name = ""
        foreign = project.folder / "foreign.onnx"
        onnx.save(model, foreign)
        options = ["tensorrt.data_type=INT8", "compute_capability=[SM89]", "max_score_drop=1.0"]
        assert generate(*options, onnx_file=foreign) == 0
        description = json.loads((project.engine.parent / "model.engine.json").read_text())
        assert description["build"]["profile"]["inputs"]["max"] == [2, 3, 64, 64]
        assert description["build"]["precision"].get("int8", 0) > 20

    def test_an_unknown_gpu_is_refused_before_calibration(self, generate, project, capsys):
        assert generate("compute_capability=[SM42]") == 2
        assert "SM42" in capsys.readouterr().err
        assert not (project.results / "precision.json").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tensorrt.min_batch_size=5", "tensorrt.max_batch_size=2"], "ascending"),
        (["batch_size=0"], "gen_trt_engine.batch_size: 0"),
        (["tensorrt.data_type=FP8"], "FP32, FP16, INT8"),
        (["tensorrt.layers_precision=['a:fp12']"], "fp12"),
        (["tensorrt.data_type=INT8", "tensorrt.calibration.cal_image_dir=[/no/such]"], "/no/such"),
        (["onnx_file=/no/such.onnx"], "gen_trt_engine.onnx_file: /no/such.onnx does not exist"),
        (["onnx_file=model.etlt"], "expected an ONNX file"),
        (["trt_engine=???", "backend=auto"], "gen_trt_engine.trt_engine"),
        (["backend=tensorflow"], "tensorrt_rtx"),
        (["max_score_drop=2"], "max_score_drop"),
        (["score_images=-2"], "score_images"),
        (["input_width=960"], "gen_trt_engine.input_width: 960 is invalid; expected 64"),
        (["input_height=32"], "are 3 x 64 x 64"),
    ],
)
def test_wrong_input_is_one_message(overrides, message, generate, project, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.etlt").touch()
    assert generate("backend=none", *overrides) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert not project.engine.exists()


def test_a_graph_of_stretched_images_is_not_calibrated_on_padded_ones(exported, capsys):
    given = [f"gen_trt_engine.onnx_file={exported.file}", "gen_trt_engine.backend=none"]
    assert exported.run("gen_trt_engine", *given, "dataset.augmentation.preserve_aspect_ratio=true") == 2
    assert "preserve_aspect_ratio is True in the spec, but False in the checkpoint" in capsys.readouterr().err


def test_an_empty_calibration_folder_is_named(generate, project, capsys):
    empty = project.folder / "empty"
    empty.mkdir()
    options = ["tensorrt.data_type=INT8", f"tensorrt.calibration.cal_image_dir=[{empty}]", "backend=none"]
    assert generate(*options) == 2
    error = capsys.readouterr().err
    assert str(empty) in error and "contains no images" in error


def test_results_are_written_to_the_requested_folder(generate, project):
    elsewhere = project.folder / "elsewhere"
    assert generate("tensorrt.data_type=FP32", "backend=none", "score_images=0", f"results_dir={elsewhere}") == 0
    assert (elsewhere / "precision.json").exists()
