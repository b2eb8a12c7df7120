"""`${...}` in a spec: other fields, environment variables, and nothing else."""

from __future__ import annotations

import pytest

from rtdetr_tool.spec.references import resolve

DEFAULTS = {"results_dir": "/results", "train": {"seed": 7, "optim": {"lr": 0.1}}, "evaluate": {"checkpoint": "???"}}


def resolved(data: dict) -> dict:
    problems: list[str] = []
    result = resolve(data, DEFAULTS, problems)
    assert not problems
    return result


def problem(text: str, **more) -> str:
    problems: list[str] = []
    assert "x" not in resolve({"x": text, **more}, DEFAULTS, problems)
    assert problems[0].startswith(f"x: '{text[:20]}") and "cannot be resolved" in problems[0]
    return problems[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${train.seed}", 7),
        ("a${train.seed}b", "a7b"),
        ("${train.optim.lr}", 0.1),
        ("${train}", {"seed": 7, "optim": {"lr": 0.1}}),
        ("${items[1]}", "two"),
        ("${items.0}", 1),
        ("${.results_dir}/x", "/results/x"),
        ("${ train.seed }", 7),
        ("${train.${word}}", 7),
        ("\\${train.seed}", "${train.seed}"),
        ("$5 {x} }", "$5 {x} }"),
        ("${oc.env:R3_PLACE_DIR}/x", "/place/x"),
        ("${oc.env:RTDETR_UNSET,else}", "else"),
        ("${oc.env:RTDETR_UNSET,'a, b'}", "a, b"),
        ("${oc.env:RTDETR_UNSET,null}", None),
        ("${oc.env:RTDETR_UNSET,${results_dir}}", "/results"),
        ("${both}${both}", "/results and /results/results and /results"),
    ],
)
def test_a_reference_gives_the_value_it_names(text, value, monkeypatch):
    monkeypatch.setenv("R3_PLACE_DIR", "/place")
    data = {"x": text, "items": [1, "two"], "word": "seed", "both": "${results_dir} and ${results_dir}"}
    assert resolved(data)["x"] == value


def test_relative_references_count_from_where_they_stand():
    data = {"train": {"optim": {"a": "${.lr}", "b": "${..seed}", "c": ["${.lr}", "${..lr}"]}}}
    problems: list[str] = []
    optim = resolve(data, DEFAULTS, problems)["train"]["optim"]
    assert (optim["a"], optim["b"], optim["c"][1]) == (0.1, 7, 0.1)
    assert problems == ["train.optim.c[0]: '${.lr}' cannot be resolved: train.optim.c.lr does not exist"]


def test_a_section_may_be_taken_over_with_its_missing_values():
    assert resolved({"x": "${evaluate}"})["x"] == {"checkpoint": "???"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("${nowhere}", "nowhere does not exist"),
        ("${train.seed.deeper}", "train.seed.deeper does not exist"),
        ("${items[7]}", "items[7] does not exist"),
        ("${evaluate.checkpoint}", "evaluate.checkpoint is not set"),
        ("${x}", "it refers to itself"),
        ("a${train}", "a section or list cannot be part of a string"),
        ("${train.seed", "a reference is not closed"),
        ("${....seed}", "is outside of the spec"),
        ("${oc.env:RTDETR_UNSET}", "the environment variable RTDETR_UNSET is not set"),
        ("${eval:1+1}", "expected a field or oc.env:NAME"),
        ("${oc.decode:1}", "expected a field or oc.env:NAME"),
        ("${oc.create:{a: 1}}", "expected a field or oc.env:NAME"),
        ("${hydra:run.dir}", "expected a field or oc.env:NAME"),
        ("${}", "expected a field or oc.env:NAME"),
    ],
)
def test_what_is_no_reference_is_a_problem_that_says_why(text, why):
    assert why in problem(text, items=[1])


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "MYSQL_PWD", "github_token"]
)
def test_a_variable_that_names_a_secret_is_refused_also_with_something_to_fall_back_to(name, monkeypatch):
    monkeypatch.setenv(name, "abcdef123456")
    for text in (f"${{oc.env:{name}}}", f"${{oc.env:{name},x}}", f"${{oc.env:${{word}}{name[1:]}}}"):
        message = problem(text, word=name[0])
        assert f"{name} names a secret" in message and "abcdef123456" not in message


@pytest.mark.parametrize(
    "name",
    [
        "PGPASSWORD", "MYSECRET", "SSHPASS", "APITOKEN", "CLIENT_SECRETS", "NETRC", "DATABASE_URL", "DSN", "HF", "PIN",
        "LOGIN", "VAULT_ADDR", "KUBECONFIG", "MY_PASSWORD_FILE", "SECRETS_DIR", "RTDETR_API_KEY", "SLURM_JWT",
    ],
)  # fmt: skip
def test_a_variable_that_nobody_knows_is_refused(name, monkeypatch):
    monkeypatch.setenv(name, "abcdef123456")
    message = problem(f"${{oc.env:{name},x}}")
    assert "abcdef123456" not in message and "written to results and checkpoints" in message


@pytest.mark.parametrize(
    "name",
    [
        "HOME", "USER", "PWD", "DATA_ROOT", "DATADIR", "DATASET_PATH", "SLURM_TMPDIR", "SLURM_JOB_ID", "RANK",
        "LOCAL_RANK", "WORLD_SIZE", "SCRATCH", "TMPDIR", "RESULTS_DIR", "BATCH_SIZE", "NUM_EPOCHS", "RUN_NAME",
        "LOCAL_PROJECT_DIR", "MODEL_FOLDER", "SM_CHANNEL_TRAINING", "COMPASS_DIR", "CUDA_VISIBLE_DEVICES", "HOSTNAME",
        "RTDETR_ANYTHING",
    ],
)  # fmt: skip
def test_places_ranks_and_names_are_read(name, monkeypatch):
    monkeypatch.setenv(name, "value")
    assert resolved({"x": f"${{oc.env:{name}}}"})["x"] == "value"


def test_the_refusal_says_what_may_be_read_and_how_to_rename_it():
    message = problem("${oc.env:MY_THING}")
    assert "begin with RTDETR_" in message and "_ROOT" in message and "Rename it to RTDETR_MY_THING" in message


def test_what_a_variable_holds_is_not_read_as_a_reference_again(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "abcdef123456")
    monkeypatch.setenv("RTDETR_NESTED", "${oc.env:WANDB_API_KEY}")
    assert resolved({"x": "${oc.env:RTDETR_NESTED}/y", "z": "${x}"}) == {
        "x": "${oc.env:WANDB_API_KEY}/y",
        "z": "${oc.env:WANDB_API_KEY}/y",
    }


def test_thousands_of_references_in_a_row_end_in_a_problem():
    data = {f"k{n}": f"${{k{n + 1}}}" for n in range(5_000)}
    problems: list[str] = []
    resolve(data, DEFAULTS, problems)
    assert problems
