"""`rtdetr benchmark`: measurements of every runtime, the scores of evaluate, one message for bad input."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from rtdetr_tool.cli import main
from rtdetr_tool.workflows.benchmark_steps import Job, measure_here

FAST = ("benchmark.seconds=0.05", "benchmark.warmup=1", "benchmark.threads=1", "benchmark.on_cpu=true")


@pytest.fixture
def in_process(monkeypatch):
    """Measure in this process, because starting a process per runtime takes seconds; one test does it."""
    here = lambda candidate, loaded, images: measure_here(Job(candidate, loaded, images))  # noqa: E731
    monkeypatch.setattr("rtdetr_tool.commands.benchmark.measure", here)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)  # of the whole test run


def content(project) -> dict:
    return json.loads((project.folder / "results" / "benchmark" / "benchmark.json").read_text())


def test_every_runtime_is_measured_and_scores_what_evaluate_scores(project, in_process, capsys):
    checkpoint = project.checkpoint(lively=True)
    assert project.run("evaluate", f"evaluate.checkpoint={checkpoint}") == 0
    scores = json.loads((project.folder / "results" / "evaluate" / "results.json").read_text())
    reduced = ("benchmark.decoder_layers=[1]", "benchmark.num_queries=[4]")
    options = ("benchmark.batch_sizes=[1,2]", "benchmark.score=true", *reduced)
    assert project.run("benchmark", f"benchmark.checkpoint={checkpoint}", *options, *FAST) == 0
    result = {row["name"]: row for row in content(project)["runtimes"]}
    measured = ["torch eager", "torch", "torch bf16", "torch, 1 decoder layers", "torch, 4 queries", "onnx"]
    measured += ["openvino"] if find_spec("openvino") else []
    assert [name for name in result if not result[name]["skipped"]] == measured
    for name in measured:
        assert [timing["batch"] for timing in result[name]["timings"]] == [1, 2]
        for timing in result[name]["timings"]:
            assert 0 < timing["median"] <= timing["p95"] <= timing["p99"] and timing["steps"] >= 10
            assert set(timing["parts"]) == {"decode", "preprocess", "model", "postprocess"}
            assert timing["images_per_second"] == pytest.approx(1000 * timing["batch"] / timing["median"])
    for name, suffixes in {"onnx": [".onnx"], "openvino": [".xml", ".bin"]}.items():
        files = [(project.folder / "results/benchmark/models/model").with_suffix(suffix) for suffix in suffixes]
        if name in measured:
            assert result[name]["megabytes"] == pytest.approx(sum(file.stat().st_size for file in files) / 1e6)
    for name in {*measured} - {"torch eager", "torch bf16", "torch, 4 queries"}:
        assert result[name]["scores"]["mAP"] == pytest.approx(scores["mAP"], abs=1e-6)
    assert result["torch, 4 queries"]["scores"]["mAP"] is not None
    network = content(project)["network"]
    assert network["input"] == [64, 64] and network["parameters"] > 10_000 and network["gflops"] > 0
    html = (project.folder / "results" / "benchmark" / "report.html").read_text()
    assert "mAP against latency" in html and "torch bf16" in html
    assert (project.folder / "results" / "benchmark" / "plots" / "map_latency.png").is_file()
    assert "Skipping tensorrt" in capsys.readouterr().err


@pytest.mark.slow
def test_a_runtime_is_measured_in_a_process_of_its_own(project):
    checkpoint, folder = project.checkpoint(), project.folder / "elsewhere"
    options = ("benchmark.runtimes=[torch]", "benchmark.batch_sizes=[1]", f"benchmark.results_dir={folder}")
    assert project.run("benchmark", f"benchmark.checkpoint={checkpoint}", *options, *FAST) == 0
    (row,) = json.loads((folder / "benchmark.json").read_text())["runtimes"]
    assert row["name"] == "torch" and row["timings"] and row["memory_mib"] > 0


def test_a_deployed_file_runs_as_it_is(project, in_process):
    checkpoint = project.checkpoint()
    file = project.folder / "model.onnx"
    assert (
        project.run("export", f"export.checkpoint={checkpoint}", f"export.onnx_file={file}", "export.on_cpu=true") == 0
    )
    assert project.run("benchmark", f"benchmark.checkpoint={file}", "benchmark.batch_sizes=[1]", *FAST) == 0
    (row,) = content(project)["runtimes"]
    assert row["device"] == "cpu" and not row["skipped"]
    assert row["name"] == "onnx" and row["megabytes"] == pytest.approx(file.stat().st_size / 1e6)
    assert content(project)["network"] is None


@pytest.mark.parametrize("system", ["linux", "win32"])
def test_core_ml_is_skipped_without_an_export_where_it_cannot_run(system, project, in_process, monkeypatch):
    monkeypatch.setattr("rtdetr_tool.formats.table.find_spec", lambda name: "installed")
    monkeypatch.setattr("rtdetr_tool.formats.table.sys", SimpleNamespace(platform=system))
    options = ("benchmark.runtimes=[torch,coreml]", "benchmark.batch_sizes=[1]")
    assert project.run("benchmark", f"benchmark.checkpoint={project.checkpoint()}", *options, *FAST) == 0
    rows = {row["name"]: row["skipped"] for row in content(project)["runtimes"]}
    assert rows == {"torch": "", "coreml": "Core ML packages run on macOS, iOS and iPadOS only"}
    assert list((project.folder / "results/benchmark/models").iterdir()) == []


def test_size_and_layers_are_those_of_the_spec(project, in_process):
    checkpoint = project.checkpoint()
    size = ("benchmark.input_height=96", "benchmark.input_width=128", "benchmark.runtimes=[torch]")
    assert project.run("benchmark", f"benchmark.checkpoint={checkpoint}", *size, "benchmark.gpu_id=0", *FAST) == 0
    assert content(project)["network"]["input"] == [96, 128]
    with_layers = ("benchmark.decoder_layers=[5]", "benchmark.runtimes=['torch, 5 decoder layers']")
    assert project.run("benchmark", f"benchmark.checkpoint={checkpoint}", *with_layers, *FAST) == 2


def test_fewer_queries_score_as_evaluate_does_with_them(project, in_process):
    checkpoint = project.checkpoint(lively=True)
    fields = ("model.num_queries=3", "model.num_select=3")
    assert project.run("evaluate", f"evaluate.checkpoint={checkpoint}", *fields) == 0
    scores = json.loads((project.folder / "results" / "evaluate" / "results.json").read_text())
    options = ("benchmark.score=true", "benchmark.num_queries=[3]", "benchmark.runtimes=['torch, 3 queries']")
    assert project.run("benchmark", f"benchmark.checkpoint={checkpoint}", *options, *FAST) == 0
    (row,) = content(project)["runtimes"]
    assert row["scores"]["mAP"] == pytest.approx(scores["mAP"], abs=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        {"arch": "dfine", "dfine": {"variant": "n", "dec_layers": 2, "num_queries": 12}},
        {"arch": "rfdetr", "rfdetr": {"hidden_dim": 32, "sa_nheads": 2, "ca_nheads": 4, "dim_feedforward": 16,
                                      "num_queries": 12, "group_detr": 1, "resolution": 64}},
    ],
    ids=["dfine", "rfdetr"],
)  # fmt: skip
@pytest.mark.slow
def test_other_families_are_measured_with_fewer_layers_and_queries_too(model, project, in_process):
    project.spec["model"] = {**model, "num_select": 8}
    project.write()
    checkpoint = project.checkpoint()
    names = "['torch, 1 decoder layers','torch, 4 queries']"
    options = (f"benchmark.runtimes={names}", "benchmark.decoder_layers=[1]", "benchmark.num_queries=[4]")
    assert project.run("benchmark", f"benchmark.checkpoint={checkpoint}", *options, *FAST) == 0
    rows = content(project)["runtimes"]
    assert [row["name"] for row in rows if row["timings"]] == ["torch, 1 decoder layers", "torch, 4 queries"]


@pytest.mark.parametrize("field", ["decoder_layers", "num_queries"])
@pytest.mark.slow
def test_a_reduction_is_refused_where_it_would_have_no_effect(field, project, in_process, capsys):
    checkpoint, file = project.checkpoint(), project.folder / "model.onnx"
    assert project.run("benchmark", f"benchmark.checkpoint={checkpoint}", f"benchmark.{field}=[9]", *FAST) == 2
    assert f"benchmark.{field}: 9 is invalid; expected at most" in capsys.readouterr().err
    assert project.run("export", f"export.checkpoint={checkpoint}", f"export.onnx_file={file}") == 0
    assert project.run("benchmark", f"benchmark.checkpoint={file}", f"benchmark.{field}=[1]", *FAST) == 2
    assert f"benchmark.{field} requires weights" in capsys.readouterr().err


def test_layers_that_cannot_predict_are_refused_with_the_reason(project, in_process, capsys):
    project.spec["model"] = {
        "arch": "dfine", "dfine": {"variant": "n", "dec_layers": 3, "eval_idx": 1, "layer_scale": 2.0}
    }  # fmt: skip
    project.write()
    checkpoint = project.checkpoint()
    assert project.run("benchmark", f"benchmark.checkpoint={checkpoint}", "benchmark.decoder_layers=[1]", *FAST) == 2
    assert "benchmark.decoder_layers is not supported with D-FINE: with model.dfine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["benchmark.runtimes=[torhc]"], r"benchmark.runtimes: torhc is invalid; expected torch eager, torch"),
        ([f"dataset.{split}_data_sources=null" for split in ("val", "test", "infer")], r"images are required"),
        (["benchmark.batch_sizes=[0]"], r"benchmark.batch_sizes"),
        (["benchmark.checkpoint=nowhere.pth"], r"nowhere.pth"),
    ],
)
def test_bad_input_ends_in_one_message(project, in_process, capsys, changes, message):
    checkpoint = project.checkpoint()
    assert project.run("benchmark", f"benchmark.checkpoint={checkpoint}", *FAST, *changes) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (project.folder / "results" / "benchmark" / "benchmark.json").exists()


def test_help_names_the_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["benchmark", "-h"])
    assert end.value.code == 0 and "latency" in capsys.readouterr().out
