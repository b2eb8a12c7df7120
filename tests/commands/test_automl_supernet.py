"""`rtdetr automl` with `automl.supernet_checkpoint`: the grid of sub-detectors of one checkpoint, without training."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
import yaml

from rtdetr_tool.spec import load_spec
from rtdetr_tool.workflows.benchmark_steps import Job, measure_here

RFDETR = {
    "arch": "rfdetr", "num_select": 8,
    "rfdetr": {"hidden_dim": 32, "sa_nheads": 2, "ca_nheads": 4, "dim_feedforward": 16, "num_queries": 8,
               "group_detr": 2, "resolution": 64},
}  # fmt: skip
NO_REPORT = "evaluate.report=false"
CHOICES = {"enabled": True, "decoder_layers": [1], "num_queries": [4], "resolution": [96]}


@pytest.fixture
def supernet(project):
    """A project with weights of two decoder layers that detect something, as if trained with `train.supernet`."""
    project.spec["model"]["dec_layers"] = 2
    project.spec["train"] = {"accelerator": "cpu", "supernet": dict(CHOICES)}
    project.spec["benchmark"] = {"seconds": 0.02, "warmup": 0, "threads": 1, "on_cpu": True}
    project.write()
    project.path = project.checkpoint(lively=True)
    return project


@pytest.fixture
def timed(monkeypatch):
    """Latency by the size of the work, so that the front is known; the real measurement has tests of its own."""

    def latency(spec, checkpoint, runtime, folder, explicit=None):
        layers = spec.model.eval_idx % spec.model.dec_layers + 1
        return spec.dataset.augmentation.eval_spatial_size[0] + 10.0 * layers + spec.model.num_queries

    monkeypatch.setattr("rtdetr_tool.search.latency.measure_latency", latency)


def search(project, *options) -> int:
    return project.run("automl", f"automl.supernet_checkpoint={project.path}", *options)


def content(project) -> dict:
    return json.loads((project.folder / "results" / "automl" / "automl.json").read_text())


def message(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


def evaluated(project, spec_file, *options) -> float:
    project.spec_file = spec_file
    assert project.run("evaluate", NO_REPORT, *options) == 0
    return json.loads((project.folder / "results" / "evaluate" / "results.json").read_text())["mAP"]


def test_each_sub_detector_scores_what_its_own_spec_does(supernet, timed, capsys, caplog):
    assert supernet.run("evaluate", f"evaluate.checkpoint={supernet.path}", NO_REPORT) == 0
    supernet.label_best_detections()
    assert search(supernet) == 0
    found, folder = content(supernet), supernet.folder / "results" / "automl"
    assert [trial["state"] for trial in found["trials"]] == ["finished"] * 8
    values = [trial["values"] for trial in found["trials"]]
    assert values[0] == {"resolution": 64, "decoder_layers": 2, "num_queries": 8}
    assert {tuple(row.values()) for row in values} == {(r, n, q) for r in (64, 96) for n in (1, 2) for q in (4, 8)}
    latency = {row["number"]: row["latency"] for row in found["trials"]}
    score = {row["number"]: row["score"] for row in found["trials"]}
    assert score[0] > 0.5 and len(set(score.values())) > 2
    dominated = [
        n for n in score
        if any(latency[m] <= latency[n] and score[m] >= score[n] and (latency[m], score[m]) != (latency[n], score[n])
               for m in score)
    ]  # fmt: skip
    assert sorted(found["pareto_front"]) == sorted(set(score) - set(dominated))
    assert found["best"] == max(score, key=lambda n: (score[n], -latency[n]))
    points = {path.name for path in (folder / "pareto").iterdir()}
    assert points == {f"point_{number:04d}.yaml" for number in found["pareto_front"]}
    page = (folder / "report.html").read_text()
    assert "Sub-detectors of one training run" in page and (folder / "plots" / "pareto_front.png").is_file()
    assert "Pareto front of 8 sub-detectors (8 finished)" in message(capsys)
    for number in found["pareto_front"][:2]:
        caplog.clear()
        assert evaluated(supernet, folder / "pareto" / f"point_{number:04d}.yaml") == score[number]
        assert "scores may differ" not in caplog.text  # it was trained for these values


def test_only_validation_data_are_read(supernet, timed, capsys):
    """Nothing is trained, so training data and initial weights may be absent."""
    del supernet.spec["dataset"]["train_data_sources"]
    supernet.spec["train"] |= {"pretrained_model_path": "nowhere.pth", "resume_training_checkpoint_path": "gone.pth"}
    supernet.spec["model"]["pretrained_backbone_path"] = "none.pth"
    supernet.write()
    assert search(supernet, "train.supernet.resolution=[]") == 0, message(capsys)
    assert [trial["state"] for trial in content(supernet)["trials"]] == ["finished"] * 4
    supernet.spec["dataset"]["train_data_sources"] = [{"image_dir": "nowhere", "json_file": "nowhere.json"}]
    supernet.write()
    assert search(supernet, "train.supernet.resolution=[]") == 0, message(capsys)
    del supernet.spec["dataset"]["val_data_sources"]
    supernet.write()
    assert search(supernet) == 2
    assert "dataset.val_data_sources or dataset.dataset_dir: required by `automl`, but not set" in message(capsys)


def test_a_point_is_exported_and_equals_the_sub_detector(supernet, timed, capsys):
    import onnxruntime

    from rtdetr_tool.formats.opening import open_detector
    from rtdetr_tool.spec import read_spec

    assert search(supernet, "train.supernet.resolution=[]") == 0
    assert len(content(supernet)["trials"]) == 4  # narrower than the training
    (file,) = (supernet.folder / "results" / "automl" / "pareto").glob(
        f"point_{content(supernet)['pareto_front'][0]:04d}*"
    )
    supernet.spec_file, onnx = file, supernet.folder / "point.onnx"
    assert supernet.run("export", f"export.onnx_file={onnx}", "export.on_cpu=true") == 0, message(capsys)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    values = content(supernet)["trials"][content(supernet)["pareto_front"][0]]["values"]
    assert values == {"decoder_layers": 1, "num_queries": 4, "resolution": 64}
    whole = open_detector(str(supernet.path), read_spec(None, [])).detector.eval()
    whole.run_as(decoder_layers=1, num_queries=4)
    with torch.inference_mode():
        expected = whole(images)
    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    pixels = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    for given in (images, pixels):  # in the layout of the file
        outputs = dict(
            zip(
                [o.name for o in session.get_outputs()],
                session.run(None, {session.get_inputs()[0].name: given.numpy()}),
                strict=True,
            )
        )
        boxes = outputs["pred_boxes"]
        if np.allclose(boxes, expected.boxes.numpy(), atol=1e-3):
            break
    else:
        raise AssertionError("the graph predicts other boxes than the sub-detector")
    assert np.allclose(outputs["pred_logits"], expected.logits.numpy(), atol=1e-2)


@pytest.mark.slow
def test_windows_and_patches_of_an_rfdetr_are_measured_evaluated_and_exported(project, monkeypatch, capsys):
    here = lambda candidate, loaded, images: measure_here(Job(candidate, loaded, images))  # noqa: E731
    monkeypatch.setattr("rtdetr_tool.workflows.benchmark_steps.measure", here)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    supernet = {"enabled": True, "patch_size": [32], "num_windows": [1], "decoder_layers": [1]}
    project.spec |= {"model": RFDETR, "train": {"accelerator": "cpu", "supernet": supernet}}
    project.spec["benchmark"] = {"seconds": 0.02, "warmup": 0, "on_cpu": True}
    project.write()
    project.path = project.checkpoint()
    assert search(project) == 0, message(capsys)
    trials = content(project)["trials"]
    assert len(trials) == 8 and all(trial["latency"] > 0 and trial["score"] is not None for trial in trials)
    values = {"resolution": 64, "decoder_layers": 1, "num_windows": 1, "patch_size": 32}
    (number,) = [trial["number"] for trial in trials if trial["values"] == values]
    folder = project.folder / "results" / "automl"
    first = yaml.safe_load((folder / "pareto" / sorted(p.name for p in (folder / "pareto").iterdir())[0]).read_text())
    assert "automl" not in first and "supernet" not in first["train"]
    first["model"]["rfdetr"] |= {"dec_layers": 1, "num_windows": 1, "patch_size": 32, "resolution": 64}
    (project.folder / "sub.yaml").write_text(yaml.safe_dump(first))
    assert evaluated(project, project.folder / "sub.yaml") == trials[number]["score"]
    onnx = project.folder / "sub.onnx"
    assert project.run("export", f"export.onnx_file={onnx}", "export.on_cpu=true") == 0, message(capsys)
    recorded = load_spec(project.folder / "results" / "evaluate" / "experiment.yaml").model.rfdetr
    assert (recorded.dec_layers, recorded.num_windows, recorded.patch_size) == (1, 1, 32)
    assert evaluated(project, project.folder / "sub.yaml", f"evaluate.checkpoint={onnx}") == pytest.approx(
        trials[number]["score"], abs=1e-3
    )


def test_a_killed_grid_resumes_with_what_is_left(supernet, timed, monkeypatch, capsys):
    from rtdetr_tool.search.sub_detectors import SubDetectorSearch

    original, calls = SubDetectorSearch._score, []

    def score(self, loaded):
        calls.append(loaded)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, loaded)

    monkeypatch.setattr(SubDetectorSearch, "_score", score)
    assert search(supernet) == 130
    before = content(supernet)["trials"]
    assert len(before) == 3
    assert search(supernet) == 0
    assert len(calls) == 4 + 5 and content(supernet)["trials"][:3] == before and len(content(supernet)["trials"]) == 8
    assert search(supernet) == 0 and len(calls) == 9  # nothing is left
    assert search(supernet, "benchmark.seconds=0.5") == 2
    assert "has other values of benchmark. Restore them to resume it" in message(capsys)


def test_the_best_sub_detector_is_within_the_latency_bound(supernet, timed, capsys):
    assert search(supernet, "automl.max_latency=90", "train.supernet.resolution=[]") == 0
    found = content(supernet)
    assert found["trials"][found["best"]]["latency"] <= 90
    assert (supernet.folder / "results" / "automl" / "best_spec.yaml").is_file()
    options = ("automl.max_latency=5", "train.supernet.num_queries=[]", "train.supernet.resolution=[]")
    assert search(supernet, *options, f"automl.results_dir={supernet.folder / 'other'}") == 2
    assert "no trial is within 5 ms" in message(capsys)


def test_a_sub_detector_that_cannot_run_is_reported_and_the_others_are_scored(supernet, monkeypatch, capsys):
    from rtdetr_tool.errors import UserError

    def latency(spec, *rest, **more):
        if spec.dataset.augmentation.eval_spatial_size == [96, 96]:
            raise UserError("onnx cannot run this model here: out of luck")
        return 5.0

    monkeypatch.setattr("rtdetr_tool.search.latency.measure_latency", latency)
    assert search(supernet) == 0
    assert [trial["state"] for trial in content(supernet)["trials"]] == ["finished"] * 4 + ["failed"] * 4
    assert "Skipping resolution 96" in message(capsys)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["train.supernet.num_queries=[3]"], r"train.supernet.num_queries: \S+ was not trained with 3; expected 4"),
        (
            ["train.supernet.resolution=[128]", "train.supernet.num_queries=[]"],
            r"train.supernet.resolution: \S+ was not trained with 128; expected 96",
        ),
        (["automl.supernet_checkpoint=nowhere.pth"], r"automl.supernet_checkpoint: nowhere.pth does not exist"),
        (["automl.latency_runtime=none"], r"automl.latency_runtime: 'none' is invalid"),
    ],
)
def test_bad_input_ends_in_one_message(options, expected, supernet, capsys):
    assert search(supernet, *options) == 2
    assert re.search(expected, message(capsys))
    assert not (supernet.folder / "results" / "automl" / "automl.json").exists()


def test_weights_of_an_ordinary_run_and_folders_of_another_search_are_refused(supernet, capsys):
    folder = supernet.folder / "results" / "automl"
    folder.mkdir(parents=True)
    (folder / "automl.json").write_text(json.dumps({"trials": []}))
    assert search(supernet) == 2
    assert "has the trials of another search. Restore them to resume it, or use another" in message(capsys)
    (folder / "automl.json").unlink()
    supernet.spec["train"]["supernet"] = {"enabled": False}
    supernet.write()
    supernet.checkpoint()
    assert search(supernet) == 2
    assert "was not trained with train.supernet.enabled; expected weights of such a run" in message(capsys)


def test_values_without_training_are_refused_or_warned_about(supernet, capsys, caplog):
    assert supernet.run("evaluate", f"evaluate.checkpoint={supernet.path}", "model.num_queries=2", NO_REPORT) == 0
    assert "model.num_queries is 2 in the spec, 8 in" in message(capsys)
    supernet.spec["model"] = RFDETR
    supernet.spec["train"]["supernet"] = {"enabled": True, "patch_size": [32]}
    supernet.write()
    supernet.checkpoint()
    options = (f"evaluate.checkpoint={supernet.path}", "model.rfdetr.patch_size=8")
    assert supernet.run("evaluate", *options) == 2
    assert "so it can also be 32" in message(capsys)
    options = (f"evaluate.checkpoint={supernet.path}", "model.rfdetr.dec_layers=1", NO_REPORT)
    assert supernet.run("evaluate", *options) == 0
    assert "runs with 1 decoder layers only, for which it was not trained" in message(capsys)


def test_fields_of_trials_have_no_effect(supernet):
    from rtdetr_tool.spec import read_spec

    notes = read_spec(None, [f"automl.supernet_checkpoint={supernet.path}", "automl.trials=3"]).notes
    assert any("automl.trials has no effect: automl.supernet_checkpoint is set" in note for note in notes)
