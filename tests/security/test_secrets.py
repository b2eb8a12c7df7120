"""Keys, tokens and passwords stay out of every file that a run leaves and of everything it prints."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rtdetr_tool.log import mask_secrets, without_secrets

SECRET = "s3cr3tv4lue9876543210"


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
        ("https://host:8080/path@v1.txt", "https://host:8080/path@v1.txt"),
        ("mail me@example.org, see https://example.org", "mail me@example.org, see https://example.org"),
        ("monkey = 3, tokens: 300, num_keys=5", "monkey = 3, tokens: 300, num_keys=5"),
    ],
)
def test_what_is_a_secret_is_masked_and_what_is_none_stays(text, masked):
    assert mask_secrets(text) == masked


def test_masking_a_long_line_takes_no_long_time():
    start = time.monotonic()
    for text in ("a" * 200_000, "?" * 50_000, "?token" * 20_000, "://" * 50_000, "api_key" * 20_000):
        mask_secrets(text)
    assert time.monotonic() - start < 10


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


def test_no_file_and_no_line_of_a_whole_chain_of_commands_holds_a_secret(project, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    work = project.folder / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    project.spec["encryption_key"] = f"key-{SECRET}"
    project.spec["wandb"]["name"] = f"run with token={SECRET}"
    project.spec["mlflow"] = {"tracking_uri": f"https://me:{SECRET}@host/x", "tags": {"api_key": SECRET}}
    project.write()
    addresses = [f"quantize.model_path='https://me:{SECRET}@host/x?token={SECRET}'"]
    assert project.run("train", "train.is_dry_run=false", "train.num_epochs=1", *addresses) == 0
    weights = project.folder / "results/train/rtdetr_model_latest.pth"
    graph = project.folder / "model.onnx"
    assert project.run("evaluate", f"evaluate.checkpoint={weights}", *addresses) == 0
    overrides = [f"export.onnx_file={graph}", "export.on_cpu=true", f"export.notes='from https://{SECRET}@host'"]
    assert project.run("export", f"export.checkpoint={weights}", *overrides) == 0
    printed = capsys.readouterr()
    assert SECRET not in printed.err + printed.out
    written = {project.spec_file}
    assert len(list((project.folder / "results").rglob("*"))) > 10 and graph.exists()
    assert files_with(tmp_path, SECRET, but=written) == []
    assert list(work.iterdir()) == []  # where it was started, nothing is left either
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
    assert project.run("evaluate", "evaluate.checkpoint=x.pth") == 1
    printed = capsys.readouterr()
    assert SECRET not in printed.err + printed.out and "https://***@host" in printed.err
    assert "Traceback" in (project.folder / "results/evaluate/log.txt").read_text()
    assert files_with(tmp_path, SECRET, but=set()) == []
