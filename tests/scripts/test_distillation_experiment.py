"""The experiment of docs/distillation.md: its specs load and its table is correct."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from rtdetr_tool.spec import load_spec

SCRIPT = Path(__file__).parents[2] / "scripts" / "distillation_experiment.py"


@pytest.fixture(scope="module")
def experiment():
    description = importlib.util.spec_from_file_location("distillation_experiment", SCRIPT)
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    return module


def test_the_specs_of_teacher_and_students_load(experiment, tmp_path):
    options = experiment.parse(["run", str(tmp_path), "--set", "model.dec_layers=2"])
    teacher = load_spec(experiment.SPEC, experiment.settings(options, tmp_path, teacher=True), "train")
    assert (teacher.model.backbone, teacher.model.hidden_dim, teacher.train.num_epochs) == ("resnet_34d", 160, 24)
    for variant, bindings in experiment.VARIANTS.items():
        following = experiment.following(tmp_path / "t.pth", bindings)
        overrides = [*experiment.settings(options, tmp_path, False), *following]
        spec = load_spec(experiment.SPEC, overrides, "train" if variant == "plain" else "distill")
        assert (spec.model.backbone, spec.model.hidden_dim, spec.model.dec_layers) == ("resnet_18d", 96, 2)
        assert variant == "plain" or len(spec.distill.bindings) == len(bindings)


def test_the_table_compares_seed_by_seed(experiment, tmp_path):
    options = experiment.parse(["run", str(tmp_path), "--seeds", "1", "2"])

    def rows(*scores):
        return [{"mAP": score, "mAP50": score + 0.2, "minutes": 2.0} for score in scores]

    experiment.write_results(options, {"teacher": rows(0.6), "plain": rows(0.3, 0.4), "srcs": rows(0.35, 0.41)})
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[-3:] == [
        "| teacher | 0.600 | - | 0.800 | 0.600 |  | 2.0 |",
        "| plain | 0.350 | 0.071 | 0.550 | 0.300, 0.400 |  | 2.0 |",
        "| srcs | 0.380 | 0.042 | 0.580 | 0.350, 0.410 | +0.030 (+0.050, +0.010) | 2.0 |",
    ]
