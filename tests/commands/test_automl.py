"""`rtdetr automl`: trials are ordinary runs, the best one becomes a spec, bad input is one message."""

from __future__ import annotations

import importlib.util
import json

import pytest
import yaml

from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec import load_spec, read_spec, spec_to_dict

pytest.importorskip("optuna")


@pytest.fixture
def searched(project):
    """A project whose trials are one step each."""
    project.spec["train"] = {"accelerator": "cpu", "num_epochs": 1, "report": False, "tensorboard": False}
    project.spec["dataset"]["batch_size"] = 6
    project.spec["automl"] = {"trials": 2, "fields": ["train.optim.lr"]}
    project.write()
    return project


@pytest.fixture
def scored(monkeypatch):
    """Replace training by scores, because one step of it detects nothing: `scored(score)`, `score(spec, epoch)`.

    Everything else runs as it is. With `train=True`, the trials are trained, and only their scores are replaced.
    """

    def replace(score, train=False):
        from rtdetr_tool.training import fit
        from rtdetr_tool.training.epoch_scores import EpochScores

        original = EpochScores.compute

        def compute(self, trainer, phase):
            value = score(self.spec, trainer.current_epoch + 1)
            return {**original(self, trainer, phase), f"{phase}/mAP_50_95": value}

        def validate(spec, callbacks):
            (callback,), found = callbacks, []
            for epoch in range(1, spec.train.num_epochs + 1):
                found.append(score(spec, epoch))
                if callback.report(epoch, found[-1], epoch == spec.train.num_epochs):
                    callback.ended_at = epoch
                    break
            return fit.FitResult(best_score=max(found))

        if train:
            monkeypatch.setattr(EpochScores, "compute", compute)
        else:
            monkeypatch.setattr(fit, "fit", validate)

    return replace


def content(project) -> dict:
    return json.loads((project.folder / "results" / "automl" / "automl.json").read_text())


def states(project) -> list[str]:
    return [trial["state"] for trial in content(project)["trials"]]


def message(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_the_best_values_are_written_as_a_spec_that_trains_the_same_run(searched, scored, capsys):
    scored(lambda spec, _: spec.train.optim.lr, train=True)  # the larger, the better
    parameters = {"train.optim.lr": {"min": 1e-5, "max": 1e-3, "log": True}, "model.dec_layers": {"choices": [1, 2]}}
    searched.spec["automl"] |= {"parameters": parameters, "trials": 3}
    searched.write()
    assert searched.run("automl") == 0
    found, folder = content(searched), searched.folder / "results" / "automl"
    rates = [trial["values"]["train.optim.lr"] for trial in found["trials"]]
    assert len(set(rates)) == 3 and all(1e-5 <= rate <= 1e-3 for rate in rates)
    assert found["best"] == rates.index(max(rates)) and found["best_score"] == pytest.approx(max(rates))
    assert found["best_values"] == found["trials"][found["best"]]["values"]
    best = read_spec(folder / "best_spec.yaml", [], "train").spec
    trial = load_spec(folder / f"trial_{found['best']:04d}" / "experiment.yaml", [], "train")
    assert best.train.optim.lr == trial.train.optim.lr == max(rates)
    assert (best.model, best.dataset) == (trial.model, trial.dataset)
    assert best.train.results_dir == str(searched.folder / "results" / "train")
    assert "automl" not in yaml.safe_load((folder / "best_spec.yaml").read_text())
    page = (folder / "report.html").read_text()
    assert f"{max(rates):.4f}" in page and "model.dec_layers" in page
    assert (folder / "plots" / "parallel_coordinates.png").is_file()
    shown = message(capsys)
    assert "3 finished" in shown, shown[-900:]
    assert searched.status("automl")[-1]["status"] == "SUCCESS"
    assert searched.status("automl")[-1]["kpi"]["best_score"] == pytest.approx(max(rates))


def test_a_trial_can_be_trained_again_from_its_own_spec(searched):
    assert searched.run("automl", "automl.trials=1") == 0
    folder = searched.folder / "results" / "automl" / "trial_0000"
    assert json.loads((folder / "status.json").read_text().splitlines()[-1])["status"] == "SUCCESS"
    searched.spec_file = folder / "experiment.yaml"
    assert searched.run("train", f"train.results_dir={searched.folder / 'again'}") == 0
    assert (searched.folder / "again" / "model_epoch_000.pth").is_file()


@pytest.mark.slow
def test_the_same_seed_chooses_the_same_values_and_another_one_does_not(searched, scored):
    scored(lambda spec, _: spec.train.optim.lr)

    def rates(folder, *options):
        assert searched.run("automl", f"automl.results_dir={searched.folder / folder}", *options) == 0
        found = json.loads((searched.folder / folder / "automl.json").read_text())["trials"]
        return [trial["values"]["train.optim.lr"] for trial in found]

    first = rates("first")
    assert rates("second") == first
    assert rates("third", "automl.seed=7") != first


@pytest.mark.slow
def test_a_resumed_search_chooses_what_it_would_have_chosen_anyway(searched, scored):
    scored(lambda spec, _: spec.train.optim.lr)
    whole = ["automl.trials=3", f"automl.results_dir={searched.folder / 'whole'}"]
    assert searched.run("automl", *whole) == 0
    for trials in (1, 3):
        assert searched.run("automl", f"automl.trials={trials}") == 0
    expected = json.loads((searched.folder / "whole" / "automl.json").read_text())["trials"]
    assert [t["values"] for t in content(searched)["trials"]] == [t["values"] for t in expected]


def test_refused_combinations_are_failed_trials_with_their_reason(searched, scored):
    scored(lambda spec, _: 0.5)
    searched.spec["automl"] |= {"fields": [], "parameters": {"model.nheads": [2, 3]}, "sampler": "grid"}
    searched.write()
    assert searched.run("automl") == 0
    found = content(searched)["trials"]
    assert sorted(states(searched)) == ["failed", "finished"]
    (failed,) = [trial for trial in found if trial["state"] == "failed"]
    assert failed["values"] == {"model.nheads": 3} and "model.nheads" in failed["reason"]
    assert failed["reason"] in (searched.folder / "results" / "automl" / "report.html").read_text().replace(
        "&#39;", "'"
    )


def test_if_all_trials_fail_the_reason_is_the_message(searched, capsys):
    searched.spec["automl"] |= {"fields": [], "parameters": {"model.nheads": [3]}}
    searched.write()
    assert searched.run("automl") == 2
    shown = message(capsys)
    assert "all 2 trials failed: trial 0: " in shown and "model.nheads" in shown
    assert states(searched) == ["failed", "failed"]
    assert not (searched.folder / "results" / "automl" / "best_spec.yaml").exists()


def test_a_run_that_fails_is_a_failed_trial(searched, scored):
    def score(spec, _):
        if spec.train.results_dir.endswith("trial_0000"):
            raise RuntimeError("kernel died")
        return 0.5

    scored(score)
    assert searched.run("automl") == 0
    assert states(searched) == ["failed", "finished"]
    assert content(searched)["trials"][0]["reason"] == "RuntimeError: kernel died"


@pytest.mark.parametrize(
    "pruner", ["asha", *(pytest.param(name, marks=pytest.mark.slow) for name in ("median", "hyperband"))]
)
def test_a_pruned_trial_ends_cleanly_at_a_validation(pruner, searched, scored):
    # Trials get worse: 0.9, 0.8, ... at every validation.
    order = []

    def score(spec, epoch):
        if spec.train.results_dir not in order:
            order.append(spec.train.results_dir)
        return 0.9 - 0.1 * order.index(spec.train.results_dir)

    scored(score, train=pruner == "asha")
    options = ["train.num_epochs=2", "automl.trials=6", f"automl.pruner={pruner}"]
    assert searched.run("automl", *options) == 0
    trials = content(searched)["trials"]
    assert trials[0]["state"] == "finished" and trials[-1]["state"] == "pruned"
    assert content(searched)["best"] == 0
    pruned = trials[-1]
    assert list(pruned["scores"]) == ["1"] and pruned["score"] == pytest.approx(0.4)
    folder = searched.folder / "results" / "automl" / "trial_0005"
    assert json.loads((folder / "status.json").read_text().splitlines()[-1])["status"] == "SUCCESS"
    if pruner == "asha":
        assert (folder / "model_epoch_000.pth").is_file() and not (folder / "model_epoch_001.pth").exists()


@pytest.mark.slow
def test_no_trial_is_pruned_before_the_first_validation_for_it(searched, scored):
    scored(lambda spec, _: 0.9 - 0.1 * int(spec.train.results_dir[-1]))
    assert searched.run("automl", "train.num_epochs=4", "automl.trials=6", "automl.pruning_start=3") == 0
    validations = [len(trial["scores"]) for trial in content(searched)["trials"]]
    assert min(validations) == 3 and states(searched)[-1] == "pruned"


@pytest.mark.slow
def test_without_a_pruner_every_trial_trains_to_its_end(searched, scored):
    scored(lambda spec, epoch: 0.0 if spec.train.results_dir.endswith("0002") else 0.5)
    options = ["train.num_epochs=2", "automl.trials=3", "automl.pruner=none"]
    assert searched.run("automl", *options) == 0
    assert states(searched) == ["finished"] * 3
    assert all(list(trial["scores"]) == ["1", "2"] for trial in content(searched)["trials"])


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_samplers_choose_within_the_range_and_learn(sampler, searched, tmp_path):
    from rtdetr_tool.search.study import open_study, sampler_for, suggest
    from rtdetr_tool.spec.search_space import search_space

    ranges = {"model.num_queries": {"min": 8, "max": 808, "step": 100}, "train.optim.lr": {"min": 1e-6, "max": 1.0}}
    searched.spec["automl"] |= {"fields": [], "parameters": ranges, "sampler": sampler}
    searched.write()
    spec = load_spec(searched.spec_file, [], "automl")
    parameters = search_space(spec).parameters
    study, tried = open_study(spec.automl, tmp_path, spec, parameters), []
    for number in range(20):
        study.sampler = sampler_for(spec.automl, parameters, number)
        trial = study.ask()
        queries, rate = (suggest(trial, parameter) for parameter in parameters)
        tried.append((queries, rate))
        study.tell(trial, -((rate - 0.7) ** 2) - (queries / 808 - 1) ** 2)
    assert {queries for queries, _ in tried} <= set(range(8, 809, 100)) and all(1e-6 <= r <= 1 for _, r in tried)
    first, last = ([abs(rate - 0.7) + abs(q / 808 - 1) for q, rate in part] for part in (tried[:10], tried[10:]))
    if sampler != "random":
        assert sum(last) < sum(first)


def test_a_grid_ends_when_every_combination_has_been_trained(searched, scored):
    scored(lambda spec, _: spec.model.dec_layers + spec.train.optim.momentum)
    searched.spec["automl"] |= {
        "fields": [], "sampler": "grid", "trials": 50,
        "parameters": {"model.dec_layers": {"min": 1, "max": 2}, "train.optim.momentum": [0.8, 0.9]},
    }  # fmt: skip
    searched.write()
    assert searched.run("automl") == 0
    tried = [tuple(trial["values"].values()) for trial in content(searched)["trials"]]
    assert sorted(tried) == [(1, 0.8), (1, 0.9), (2, 0.8), (2, 0.9)]
    assert content(searched)["best_values"] == {"model.dec_layers": 2, "train.optim.momentum": 0.9}
    assert searched.run("automl") == 0  # nothing is left to do
    assert len(content(searched)["trials"]) == 4


def test_lists_can_be_chosen(searched, scored):
    scored(lambda spec, _: 0.5)
    searched.spec["automl"] |= {
        "fields": [], "parameters": {"dataset.augmentation.eval_spatial_size": [[32, 32], [64, 64]]}, "trials": 1,
    }  # fmt: skip
    searched.write()
    assert searched.run("automl") == 0
    (trial,) = content(searched)["trials"]
    assert trial["values"]["dataset.augmentation.eval_spatial_size"] in ([32, 32], [64, 64])
    spec = load_spec(searched.folder / "results" / "automl" / "trial_0000" / "experiment.yaml", [], "train")
    assert spec.dataset.augmentation.eval_spatial_size == trial["values"]["dataset.augmentation.eval_spatial_size"]


def test_with_a_latency_bound_the_best_trial_is_within_it(searched, scored, monkeypatch, capsys):
    scored(lambda spec, _: float(spec.model.dec_layers) / 10)
    times = {1: 2.0, 2: 5.0, 3: 9.0}
    monkeypatch.setattr(
        "rtdetr_tool.search.trial.measure_latency", lambda job, path: times[job.loaded.spec.model.dec_layers]
    )
    searched.spec["automl"] |= {
        "fields": [],
        "parameters": {"model.dec_layers": [1, 2, 3]},
        "sampler": "grid",
        "trials": 3,
    }
    searched.write()
    assert searched.run("automl", "automl.max_latency=6") == 0
    found = content(searched)
    assert found["best_values"] == {"model.dec_layers": 2}
    assert [found["trials"][number]["latency"] for number in found["pareto_front"]] == [2.0, 5.0, 9.0]
    assert searched.run("automl", "automl.max_latency=1") == 2
    assert "no trial is within 1 ms; the fastest has 2.00 ms" in message(capsys)


@pytest.mark.slow
def test_latency_is_measured_with_the_trained_weights(searched):
    options = ["automl.objective=pareto", "automl.trials=1", "benchmark.seconds=0.05", "benchmark.threads=1"]
    assert searched.run("automl", *options) == 0
    (trial,) = content(searched)["trials"]
    assert trial["state"] == "finished" and trial["latency"] > 0


def test_another_spec_is_refused_in_the_same_search(searched, scored, capsys):
    scored(lambda spec, _: 0.5)
    assert searched.run("automl", "automl.trials=1") == 0
    assert searched.run("automl", "train.clip_grad_norm=3") == 2
    shown = message(capsys)
    assert "train.clip_grad_norm (0.1, now 3.0)" in shown and "another results folder or study_name" in shown
    assert searched.run("automl", "train.clip_grad_norm=3", "automl.study_name=second", "automl.trials=1") == 0


def test_a_damaged_database_is_one_message(searched, capsys):
    folder = searched.folder / "results" / "automl"
    folder.mkdir(parents=True)
    (folder / "study.db").write_bytes(b"not a database" * 100)
    assert searched.run("automl") == 2
    shown = message(capsys)
    assert "study.db cannot be used: file is not a database" in shown and "remove a damaged file" in shown
    assert not list(folder.glob("trial_*"))


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ("nonsense", "cannot be used"),
        ("oracle9://host/db", "cannot be used"),
        ("sqlite:////no/such/folder/a.db", "unable to open database file"),
        ("postgresql://me:correct-horse@127.0.0.1:1/db", "127.0.0.1"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_message(storage, expected, searched, capsys):
    if storage.startswith("postgresql"):
        pytest.importorskip("psycopg")
    assert searched.run("automl", f"automl.storage='{storage}'") == 2
    shown = message(capsys)
    assert "Error: automl.storage: " in shown and expected in shown and "correct-horse" not in shown


def test_a_missing_package_is_one_message(searched, monkeypatch, capsys):
    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "optuna" else original(name, *rest)
    )
    assert searched.run("automl") == 2
    assert 'automl requires optuna: pip install "rtdetr-tool[automl]"' in message(capsys)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"fields": ["train.optim.lrr"]}, "automl.fields: train.optim.lrr: no such field; did you mean"),
        ({"fields": ["train.optim"]}, "automl.fields: train.optim cannot be searched"),
        ({"fields": ["evaluate.batch_size"]}, "automl.fields: evaluate.batch_size cannot be searched"),
        ({"fields": ["train.pretrained_model_path"]}, "train.pretrained_model_path cannot be searched"),
        ({"fields": ["model.hidden_dim"]}, "automl.fields: model.hidden_dim has no default range; set it in"),
        ({"fields": []}, "there is nothing to search"),
        ({"trials": 0}, "automl.trials: 0 is invalid; expected an integer from 1"),
        ({"sampler": "cmaes"}, "automl.sampler: 'cmaes' is invalid; expected one of tpe, gp, random, grid"),
        ({"sampler": "grid"}, "train.optim.lr: sampler grid requires choices or a step"),
        ({"objective": "pareto", "pruner": "asha"}, "automl.pruner: asha is not supported with latency"),
        ({"max_latency": -1}, "automl.max_latency: -1 is invalid; expected a number above 0"),
        ({"latency_runtime": "tensorflow"}, "automl.latency_runtime: 'tensorflow' is invalid; expected one of"),
        ({"workers": 0}, "automl.workers: 0 is invalid"),
    ],
)  # fmt: skip
def test_a_wrong_section_is_refused_before_anything_is_written(section, expected, searched, capsys):
    searched.spec["automl"] |= section
    searched.write()
    assert searched.run("automl") == 2
    assert expected in message(capsys)
    assert not (searched.folder / "results").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"min": 1e-5, "max": -1}, "-1 is invalid; expected a number above 0"),
        ({"min": 1e-3, "max": 1e-5}, "min 0.001 and max 1e-05 are invalid; expected min below max"),
        ({"min": 1e-3}, "expected min and max, or choices"),
        ({"min": "a", "max": 1}, "'a' is invalid; expected a number above 0"),
        ({"choices": []}, "choices: [] is invalid; expected a list of values"),
        ({"choices": [0.1, 0.1]}, "expected different values"),
        ({"choices": [0.1, "x"]}, "'x' is invalid; expected a number above 0"),
        ({"choices": [0.1], "log": True}, "choices cannot be combined with log"),
        ({"min": 0.1, "max": 0.3, "step": 0.5}, "step: 0.5 is invalid"),
        ({"min": 0.1, "max": 0.3, "step": 0.1, "log": True}, "log and step cannot both be set"),
        ({"low": 0.1, "max": 0.3}, "low is invalid; expected min, max, log, step, choices"),
        (5, "5 is invalid; expected {min, max}, {choices} or null"),
    ],
)
def test_a_wrong_range_is_refused_with_its_place(given, expected, searched):
    searched.spec["automl"]["parameters"] = {"train.optim.lr": given}
    searched.write()
    with pytest.raises(SpecError) as error:
        load_spec(searched.spec_file, [], "automl")
    problem = error.value.problems[0]
    assert problem.startswith("automl.parameters.train.optim.lr") and expected in problem


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.num_gpus=2", "a trial runs on one device"),
        ("train.is_dry_run=true", "train.is_dry_run: a dry run has no score"),
        ("train.resume_training_checkpoint_path=a.pth", "every trial would resume from the same checkpoint"),
    ],
)
def test_settings_of_training_that_a_search_cannot_use_are_refused(override, expected, searched):
    with pytest.raises(SpecError, match=expected):
        load_spec(searched.spec_file, [override], "automl")


def test_ranges_can_be_given_on_the_command_line(searched):
    from rtdetr_tool.spec.search_space import search_space

    nested = ["automl.parameters.train.optim.lr.min=0.1", "automl.parameters.train.optim.lr.max=0.2"]
    for options in (nested, ["automl.parameters={train.optim.lr: {min: 0.1, max: 0.2}}"]):
        (parameter,) = search_space(load_spec(searched.spec_file, options, "automl")).parameters
        assert (parameter.name, parameter.low, parameter.high) == ("train.optim.lr", 0.1, 0.2)


def test_by_default_the_fields_that_tao_marks_are_searched_unless_they_have_no_effect():
    from rtdetr_tool.spec import spec_from_dict
    from rtdetr_tool.spec.queries import names_with
    from rtdetr_tool.spec.search_space import search_space

    marked = {name for name in names_with("automl", True) if not name.startswith("distill.")}
    train = {"num_epochs": 10, "enable_ema": True, "optim": {"lr_scheduler": "StepLR", "lr_step_size": 4}}
    space = search_space(spec_from_dict({"train": train}))
    always_fixed = {"dataset.workers", "train.num_epochs", "model.num_select"}
    assert {parameter.name for parameter in space.parameters} == marked - always_fixed
    assert not space.problems
    ranges = {parameter.name: parameter for parameter in space.parameters}
    rate = ranges["train.optim.lr"]
    assert (rate.low, rate.high, rate.log) == (pytest.approx(1e-5), pytest.approx(1e-3), True)
    for family in ("rtdetr", "rfdetr"):
        assert not search_space(spec_from_dict({"model": {"arch": family}})).problems
    named = {"parameters": {"train.num_epochs": {"min": 5, "max": 9}, "train.optim.lr": None}}
    names = [parameter.name for parameter in search_space(spec_from_dict({"automl": named})).parameters]
    assert "train.num_epochs" in names and "train.optim.lr" not in names


def test_every_step_of_augmentation_has_a_range_that_is_valid_at_both_ends():
    """Apart from sizes and lists, of which no range follows from the spec."""
    from rtdetr_tool.spec import spec_from_dict
    from rtdetr_tool.spec.schema import field_names
    from rtdetr_tool.spec.search_ranges import with_values
    from rtdetr_tool.spec.search_space import search_space

    lists = ("multi_scales", "train_spatial_size", "eval_spatial_size", "keypoint_flip_pairs", "albumentations")
    start = "dataset.augmentation."
    names = [name for name in field_names() if name.startswith(start) and name.removeprefix(start) not in lists]
    names.append("dataset.repeat_threshold")
    base = {"train": {"num_epochs": 40}, "automl": {"fields": names}}
    space = search_space(spec_from_dict(base))
    assert not space.problems and {parameter.name for parameter in space.parameters} == set(names)
    found = {parameter.name.rpartition(".")[2]: parameter for parameter in space.parameters}
    assert (found["no_aug_epochs"].low, found["no_aug_epochs"].high, found["no_aug_epochs"].whole) == (0, 12, True)
    assert (found["mix_stop_epoch"].low, found["mix_stop_epoch"].high) == (16, 40)
    ranges = [parameter for parameter in space.parameters if not parameter.choices]
    for ends in ([p.low for p in ranges], [p.high for p in ranges]):
        values = {p.name: int(end) if p.whole else end for p, end in zip(ranges, ends, strict=True)}
        spec_from_dict(with_values(base, values))  # raises for invalid values


def test_the_spec_of_a_search_serves_other_commands_unchanged(searched):
    spec = load_spec(searched.spec_file, [], "train")
    assert spec.automl.trials == 2 and spec_to_dict(spec)["automl"]["fields"] == ["train.optim.lr"]


def test_the_password_of_a_database_is_in_no_file(searched, scored, tmp_path):
    scored(lambda spec, _: 0.5)
    database, password = tmp_path / "shared.db", "correct-horse-battery"
    url = f"sqlite:///{database}?password={password}"
    code = searched.run("automl", f"automl.storage='{url}'")
    files = [path for path in (searched.folder / "results").rglob("*") if path.is_file()]
    assert code == 0 and database.is_file() and files
    for path in [*files, database]:
        assert password.encode() not in path.read_bytes(), path
