"""`train.preset: fast` fills fields that are not set, and slow settings are named with their cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec import read_spec, spec_from_dict
from rtdetr_tool.spec.default_spec import default_yaml, dependent_fields, whole_yaml
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


@pytest.mark.parametrize("text", [default_yaml("train"), whole_yaml()], ids=["train", "all commands"])
def test_a_default_spec_leaves_its_fields_to_preset_and_recipe(text, tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(text.replace("cal_image_dir: ???", "cal_image_dir: [/a]").replace("???", "/some/path"))
    chosen = ("model.arch=rfdetr", "train.preset=fast")
    loaded, reference = read_spec(path, chosen), read_spec(None, chosen)
    assert fields(loaded.spec.train) == ("auto", "on", False, False, True)
    assert (loaded.spec.train.num_epochs, loaded.spec.train.optim.lr_backbone) == (100, 1.5e-4)
    assert loaded.spec.dataset.augmentation == reference.spec.dataset.augmentation
    assert not [note for note in loaded.notes if "preset" in note]


def test_a_default_spec_has_these_fields_as_comments():
    text = default_yaml("train")
    assert "\n  # precision: fp32\n" in text and "\n  # cudnn:\n" in text
    names = {name.rpartition(".")[2] for name in dependent_fields() if not name.startswith("evaluate.")}
    for name in names:
        assert f"# {name}: " in text, name


def test_fields_that_override_the_preset_are_named(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text("train: {preset: fast, precision: fp32, cudnn: {deterministic: true, benchmark: true}}")
    (note,) = [note for note in read_spec(path).notes if "preset" in note]
    assert "train.precision fp32, train.cudnn.deterministic true:" in note
    path.write_text("train: {preset: tao, precision: bf16}")
    assert not [note for note in read_spec(path).notes if "preset" in note]
