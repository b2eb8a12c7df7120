"""`train.preset: fast` fills fields that are not set, and slow settings are named with their cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.spec.preset import slow_line, slow_settings


def train_section(**train):
    return spec_from_dict({"results_dir": "unused", "train": train}).train


def fields(train):
    return train.precision, train.tf32, train.activation_checkpoint, train.cudnn.deterministic, train.cudnn.benchmark


def test_the_preset_fills_what_the_spec_does_not_set():
    assert fields(train_section()) == fields(train_section(preset="tao")) == ("fp32", "auto", True, True, False)
    assert fields(train_section(preset="fast")) == ("auto", "on", False, False, True)
    own = train_section(preset="fast", precision="fp16", activation_checkpoint=True, cudnn={"benchmark": False})
    assert fields(own) == ("fp16", "on", True, False, False)
    assert train_section(preset="fast", num_epochs=3).num_epochs == 3


def test_an_invalid_section_is_reported_and_not_filled():
    with pytest.raises(SpecError, match=r"train\.cudnn"):
        train_section(preset="fast", cudnn=3)
    with pytest.raises(SpecError, match=r"train\.preset"):
        train_section(preset="quick")


def test_slow_settings_are_named_with_their_cost():
    names = [text.split()[0] for text in slow_settings(train_section())]
    assert names == [
        "train.precision=fp32", "train.tf32=auto", "train.activation_checkpoint=true", "train.cudnn.deterministic=true",
    ]  # fmt: skip
    fast = train_section(preset="fast")
    assert slow_line(fast) is None
    kept = slow_line(train_section(preset="fast", activation_checkpoint=True))
    assert "17 % more computation" in kept and kept.endswith("remove them from the spec.")
    slow = replace(fast, preset="tao", cudnn=replace(fast.cudnn, benchmark=False))
    assert "train.cudnn.benchmark=false" in slow_line(slow) and "set train.preset to fast" in slow_line(slow)
