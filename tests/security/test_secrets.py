"""Keys, tokens and passwords are in no file and no output of a run."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch

from rtdetr_tool.redaction import mask_secrets, names_secret, remember_secrets, without_secrets
from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.training.loggers import _create_logger, mlflow_arguments, wandb_arguments

SECRET = "s3cr3tv4lue9876543210"


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr("rtdetr_tool.redaction._remembered", set())


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"https://user:{SECRET}@host/path?x=1", "https://***@host/path?x=1"),
        (f"https://{SECRET}@host/path", "https://***@host/path"),
        (f"s3://me:{SECRET}@bucket", "s3://***@bucket"),
        (f"https://host/x?token={SECRET}&y=2#z", "https://host/x?token=***&y=2#z"),
        (f"https://host/x?a=1&X-Amz-Signature={SECRET}", "https://host/x?a=1&X-Amz-Signature=***"),
        (f"Authorization: Bearer {SECRET}", "Authorization: Bearer ***"),
        (f"login with hf_{SECRET}", "login with hf_***"),
        (f"api_key: '{SECRET} and {SECRET}'", "api_key: ***"),
        ("https://host.example:8080/path@v1.txt", "https://host.example:8080/path@v1.txt"),
        ("http://localhost:5000 and x@y", "http://localhost:5000 and x@y"),
        ("https://host/path/a@v1.txt: not found", "https://host/path/a@v1.txt: not found"),
        ("file:///home/me/a@b.txt sqlite:////data/a:b@c.db", "file:///home/me/a@b.txt sqlite:////data/a:b@c.db"),
        ("C:/Users/me@work/x", "C:/Users/me@work/x"),
        ("mail me@example.org, see https://example.org", "mail me@example.org, see https://example.org"),
        ("monkey = 3, tokens: 300, num_keys=5", "monkey = 3, tokens: 300, num_keys=5"),
    ],
)
def test_what_is_a_secret_is_masked_and_what_is_none_stays(text, masked):
    assert mask_secrets(text) == masked


def test_masking_a_long_line_takes_no_long_time():
    start = time.process_time()
    for text in ("a" * 200_000, "?" * 50_000, "?token" * 20_000, "://" * 50_000, "api_key" * 20_000):
        mask_secrets(text)
    assert time.process_time() - start < 10


def test_plain_data_keeps_its_form_without_the_secrets(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)
    data = {
        "encryption_key": "nvidia_tlt", "n": 3, "empty": {"api_key": "", "password": None},
        "list": [f"x{SECRET}y", {"hf_token": "abc"}], "mask_token": True, "keys": ["a"],
    }  # fmt: skip
    assert without_secrets(data) == {
        "encryption_key": "***", "n": 3, "empty": {"api_key": "", "password": None},
        "list": ["x***y", {"hf_token": "***"}], "mask_token": True, "keys": ["a"],
    }  # fmt: skip


def files_with(folder: Path, secret: str, but: set[Path]) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path not in but and secret.encode() in path.read_bytes()
    ]


@pytest.mark.slow
def test_no_file_and_no_line_of_a_whole_chain_of_commands_holds_a_secret(project, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("PGPASSWORD", hidden := "another-s3cr3t")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    work = project.folder / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    project.spec["encryption_key"] = f"key-{SECRET}"
    project.spec["wandb"]["name"] = f"run with token={SECRET}"
    hard = 'it\'s aaa/bbb@ccc "ddd"'
    uri = f"postgresql://me:{hard}@host/db?pwd={SECRET}"
    project.spec["mlflow"] = {"tracking_uri": uri, "tags": {"api_key": SECRET, "via": f"x{hidden}y"}}
    project.write()
    addresses = [f"quantize.model_path='https://me:{SECRET}@host/x?token={SECRET}'"]
    assert project.run("train", "train.is_dry_run=false", "train.num_epochs=1", *addresses) == 0
    weights = project.folder / "results/train/rtdetr_model_latest.pth"
    graph = project.folder / "model.onnx"
    assert project.run("evaluate", f"evaluate.checkpoint={weights}", *addresses) == 0
    overrides = [f"export.onnx_file={graph}", "export.on_cpu=true", f"export.notes='from https://{SECRET}@host'"]
    assert project.run("export", f"export.checkpoint={weights}", *overrides) == 0
    assert project.run("train", "model.backbone='https://me:qqq/rrr@sss ttt@host'") == 2
    printed = capsys.readouterr()
    parts = [SECRET, hidden, "it's a", "aaa/b", "bbb@c", 'ccc "d', "qqq/", "rrr@", "sss ttt"]
    assert [part for part in parts if part in printed.err + printed.out] == []
    written = {project.spec_file}
    assert len(list((project.folder / "results").rglob("*"))) > 10 and graph.exists()
    assert [part for part in parts if files_with(tmp_path, part, but=written)] == []
    assert [part for part in parts if part in str(torch.load(weights, weights_only=True))] == []
    assert list(work.iterdir()) == []  # nor in the folder where it was started
    assert "***" in (project.folder / "results/train/experiment.yaml").read_text()


def test_neither_do_those_of_a_run_that_fails(project, capsys, monkeypatch, tmp_path):
    project.spec["dataset"]["train_data_sources"][0]["image_dir"] = f"https://me:{SECRET}@host/images?token={SECRET}"
    project.write()
    assert project.run("train") == 2
    assert project.run("evaluate", f"evaluate.checkpoint='https://{SECRET}@host/x.pth?sig={SECRET}'") == 2
    assert project.run("train", f"api_key={SECRET}", f"model.backbone='https://{SECRET}@x'") == 2
    printed = capsys.readouterr()
    assert SECRET not in printed.err + printed.out
    assert "***" in printed.err
    assert files_with(tmp_path, SECRET, but={project.spec_file}) == []


def test_nor_does_a_fault_of_ours(project, capsys, monkeypatch, tmp_path):
    from rtdetr_tool.commands import evaluate

    def fault(loaded):
        raise RuntimeError(f"at https://me:{SECRET}@host with password={SECRET}")

    monkeypatch.setattr(evaluate, "run", fault)
    checkpoint = project.checkpoint()
    assert project.run("evaluate", f"evaluate.checkpoint={checkpoint}") == 1
    printed = capsys.readouterr()
    assert SECRET not in printed.err + printed.out and "https://***@host" in printed.err
    assert "Traceback" in (project.folder / "results/evaluate/log.txt").read_text()
    assert files_with(tmp_path, SECRET, but=set()) == []


@pytest.mark.parametrize(
    "name",
    [
        "PGPASSWORD", "MYSECRET", "SSHPASS", "APITOKEN", "CLIENT_SECRETS", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY",
        "MYSQL_PWD", "github_token", "Db_Passphrase", "KEYSTORE", "GOOGLE_APPLICATION_CREDENTIALS", "NPM_AUTH", "MYJWT",
    ],
)  # fmt: skip
def test_the_value_of_a_variable_that_names_a_secret_is_masked_everywhere(name, monkeypatch):
    monkeypatch.setenv(name, SECRET)
    assert names_secret(name) and mask_secrets(f"x{SECRET}y {{'{SECRET}'}}") == "x***y {'***'}"


@pytest.mark.parametrize("name", ["COMPASS", "AUTHOR", "HOME", "DATA_ROOT", "RANK", "XAUTHORITY_DIR"])
def test_other_names_are_no_secret(name):
    assert not names_secret(name)


def test_a_variable_that_holds_the_path_of_a_file_or_folder_is_a_place_and_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("KEYPOINTS_DIR", str(tmp_path))
    assert mask_secrets(f"{tmp_path}/x.json") == f"{tmp_path}/x.json"


HARD_PASSWORDS = [
    "sl/ash/es", "two@signs@here", "with some spaces", "a\"quote", "a'quote", "a:b/c@d e", "<angles>", "percent%40x",
    "http://inside", "#?&=;", "8080/looks like a port", "ü/é@", "back\\slash/x", "p" * 300 + "/x",
]  # fmt: skip


@pytest.mark.parametrize("password", HARD_PASSWORDS)
@pytest.mark.parametrize("scheme", ["https", "postgresql+psycopg2", "s3", "mysql"])
def test_no_part_of_a_password_in_an_address_is_left(password, scheme):
    for text in (f"{scheme}://me:{password}@host/db", f"{scheme}:/me:{password}@host/db"):
        masked = f"{text.partition('me:')[0]}***@host/db"
        assert mask_secrets(text) == masked
        assert mask_secrets(f"cannot open {text}: no route") == f"cannot open {masked}: no route"
        assert without_secrets({"uri": [text]}) == {"uri": [masked]}


@pytest.mark.parametrize(
    "name", ["pwd", "pw", "password", "pass", "passphrase", "X-Amz-Signature", "sig", "access_token", "apiKey", "jwt"]
)
@pytest.mark.parametrize("value", ["plain", "a/b@c", "with some spaces", 'a"quote', "a'quote", "#hash"])
def test_no_part_of_a_parameter_that_names_a_secret_is_left(name, value):
    text = f"https://host/x?a=1&{name}={value}&b=2"
    assert without_secrets({"a": [text]}) == {"a": [f"https://host/x?a=1&{name}=***&b=2"]}


@pytest.mark.parametrize("key", ["password", "dbPassword", "client_secrets", "apiKey", "hf_token", "api-key", "pwd"])
def test_the_value_under_a_key_that_names_a_secret_is_masked(key):
    assert without_secrets({key: "short"}) == {key: "***"}


def test_numbers_and_lists_under_passwords_are_masked_and_harmless_keys_stay():
    data = {"password": 12345678, "passwords": ["a", "b"], "credentials": {"user": "u", "password": "p"}}
    assert without_secrets(data) == {
        "password": "***", "passwords": "***", "credentials": {"user": "u", "password": "***"},
    }  # fmt: skip
    harmless = {"num_tokens": 300, "tokenizer": "bert", "monkey": "red", "keypoints": "x", "compass": "y"}
    assert without_secrets(harmless) == harmless


@pytest.mark.parametrize("password", ["it's 5 o'clock & more", "a/b@c d", 'say "hi"'])
def test_a_secret_of_a_spec_is_masked_in_every_text_that_repeats_it(password):
    remember_secrets({"mlflow": {"tracking_uri": f"https://h/x?pwd={password}"}, "list": [{"client_secret": password}]})
    for text in (f"login failed for {password}!", f"bad value {password!r}", f"see {password}"):
        assert password not in mask_secrets(text) and repr(password)[1:-1] not in mask_secrets(text)


def test_services_are_given_no_secret_to_keep(monkeypatch, tmp_path):
    spec = spec_from_dict(
        {
            "mlflow": {"experiment": f"x token={SECRET}", "run_name": f"https://a:{SECRET}@h",
                       "tags": {"api_key": SECRET, "who": "me"}},
            "wandb": {"name": f"password={SECRET}", "project": f"https://h?pwd={SECRET}", "tags": [f"hf_{SECRET}"]},
        }
    )  # fmt: skip
    arguments = [mlflow_arguments(spec.mlflow, tmp_path), wandb_arguments(spec.wandb, tmp_path)]
    assert SECRET not in str(arguments) and arguments[0]["tags"]["who"] == "me"


def test_services_see_no_secret_on_the_command_line(monkeypatch):
    class Recording:
        def __init__(self):
            self.arguments = list(sys.argv)

    given = ["rtdetr", "train", f"mlflow.tracking_uri=https://me:{SECRET}@host"]
    monkeypatch.setattr(sys, "argv", given)
    (service,) = _create_logger("x", "x", Recording)
    assert service.arguments[1:] == ["train", "mlflow.tracking_uri=https://***@host"] and sys.argv is given
