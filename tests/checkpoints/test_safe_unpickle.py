"""Pickles that contain a program's settings next to the weights: only the weights are read."""

from __future__ import annotations

import argparse
import collections
import os
import pathlib

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.checkpoints.safe_unpickle import HARMLESS, Placeholder
from rtdetr_tool.errors import CheckpointError

SETTINGS = {
    "args": argparse.Namespace(lr=0.1, output=pathlib.Path("out")),
    "config": OmegaConf.create({"model": {"layers": [1, 2]}}),
    "score": np.float64(0.5),
    "history": np.arange(3.0),
    "counts": collections.defaultdict(list),
}


class _RunsCode:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("name", SETTINGS)
def test_weights_are_read_and_settings_become_placeholders(tmp_path, name):
    torch.save({"model": {"a": torch.arange(3.0)}, name: SETTINGS[name], "epoch": 3}, tmp_path / "a.pth")
    payload = load_checkpoint(tmp_path / "a.pth")
    assert torch.equal(payload["model"]["a"], torch.arange(3.0)) and payload["epoch"] == 3
    kept = {"lr": 0.1, "output": {}} if name == "args" else {}  # only the values of a namespace are kept
    assert isinstance(payload[name], Placeholder) and payload[name] == kept


def test_the_code_of_a_harmless_class_does_not_run_either(tmp_path, monkeypatch):
    torch.save({"model": {"a": torch.ones(1)}, "args": argparse.Namespace(lr=0.1)}, tmp_path / "a.pth")
    monkeypatch.setattr(argparse.Namespace, "__setattr__", lambda *_: pytest.fail("ran"))
    monkeypatch.setattr(argparse.Namespace, "__init__", lambda *_: pytest.fail("ran"))
    assert isinstance(load_checkpoint(tmp_path / "a.pth")["args"], Placeholder)


def test_a_dangerous_class_among_settings_is_refused_by_name_and_not_run(tmp_path):
    witness = tmp_path / "ran"
    content = {"model": {"a": torch.ones(1)}, "args": argparse.Namespace(callback=_RunsCode(witness))}
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"posix\.mkdir.*Nothing was executed"):
        load_checkpoint(tmp_path / "a.pth")
    assert not witness.exists()


@pytest.mark.parametrize("name", ["os.", "posix.", "subprocess.", "builtins.eval", "builtins.exec", "builtins.getattr"])
def test_nothing_that_runs_code_counts_as_harmless(name):
    assert not any(known.startswith(name) or name.startswith(known) for known in HARMLESS)


def test_an_unknown_class_is_still_refused(tmp_path):
    torch.save({"model": {"a": torch.ones(1)}, "when": pathlib.PurePosixPath("x")}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"pathlib\.PurePosixPath"):
        load_checkpoint(tmp_path / "a.pth")
