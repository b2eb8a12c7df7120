"""Secrets are in no file of MLflow and Weights & Biases. Requires their packages, which are extras."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

PASSWORD, TOKEN, KEY, LINK = "pgS3cretAAA111", "tokS3cretBBB222", "awsS3cretCCC333", "uriS3cretDDD444"
SECRETS = (PASSWORD, TOKEN, KEY, LINK)


def contents(file: Path) -> Iterator[bytes]:
    yield file.read_bytes()
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            yield from map(archive.read, archive.namelist())


def forms(secret: str) -> tuple[bytes, ...]:
    return secret.encode(), secret.encode("utf-16-le"), base64.b64encode(secret.encode())[:12]


def test_no_file_of_a_service_has_a_secret(project, monkeypatch):
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    project.spec |= {
        "wandb": {"enable": True, "project": f"project {TOKEN}", "name": f"run?pwd={LINK}", "tags": [PASSWORD, "fine"]},
        "mlflow": {"enable": True, "experiment": f"cells {PASSWORD}", "tags": {"db": f"postgres://me:{LINK}@host/x"}},
    }
    project.write()
    environment = os.environ | {
        "PGPASSWORD": PASSWORD, "MY_API_TOKEN": TOKEN, "AWS_SECRET_ACCESS_KEY": KEY, "WANDB_MODE": "offline",
        "WANDB_API_KEY": 36 * "e" + "5f5f", "HOME": str(project.folder / "home"),
    }  # fmt: skip
    for name in ("MLFLOW_TRACKING_URI", "WANDB_SILENT"):
        environment.pop(name, None)
    overrides = ["train.is_dry_run=false", "train.num_epochs=1", f"mlflow.run_name=first {KEY}"]
    command = [sys.executable, "-m", "rtdetr_tool", "train", "-e", project.spec_file, "-r", project.folder / "results"]
    done = subprocess.run([*command, *overrides], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Skipping" not in done.stderr and "Weights & Biases: offline, in " in done.stderr
    assert "wandb:" not in done.stderr  # its own messages
    assert not any(secret in done.stdout + done.stderr for secret in SECRETS)
    folder = project.folder / "results" / "train"
    files = [file for file in folder.rglob("*") if file.is_file()]
    files += [file for file in (project.folder / "home").rglob("*") if file.is_file()]
    result = {
        (file.name, secret)
        for file in files
        for content in contents(file)
        for secret in SECRETS
        if any(form in content for form in forms(secret))
    }
    assert result == set()
    (run,) = folder.glob("wandb/offline-run-*/*.wandb")
    assert b"run?pwd=***" in run.read_bytes() and b"first ***" in (folder / "mlflow.db").read_bytes()
