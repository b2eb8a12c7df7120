"""Training to export with a frozen foundation model, using a tiny RADIO."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rtdetr_tool.catalog import FOUNDATION_MODELS, FoundationModel
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.commands import export
from rtdetr_tool.errors import CheckpointError, UserError
from rtdetr_tool.families.rtdetr.model.radio import RadioViT
from rtdetr_tool.families.rtdetr.spec import FrozenFmSpec
from rtdetr_tool.formats.opening import open_detector
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.spec import read_spec
from rtdetr_tool.training import fit

WIDTH = 16


@pytest.fixture
def radio_file(tmp_path, monkeypatch) -> str:
    monkeypatch.setitem(FOUNDATION_MODELS, "radio_v2-b", FoundationModel("radio_v2-b", WIDTH, 2, 2, 0, "", ""))
    torch.manual_seed(11)
    torch.save(RadioViT(WIDTH, 2, 2).state_dict(), tmp_path / "radio.pth")
    return str(tmp_path / "radio.pth")


@pytest.fixture
def spec(make_spec, radio_file):
    spec = make_spec(train__enable_ema=True)
    frozen = FrozenFmSpec(enabled=True, backbone="radio_v2-b", checkpoint=radio_file)
    return dataclasses.replace(spec, model=dataclasses.replace(spec.model, frozen_fm=frozen))


@pytest.mark.slow
def test_radio_is_not_in_checkpoints_and_is_loaded_again(spec, radio_file, tmp_path):
    fit.fit(spec)
    files = sorted((tmp_path / "train").glob("model_epoch_*.pth"))
    assert len(files) == 2  # trained and averaged
    for file in files:
        checkpoint = load_checkpoint(file)
        for part in ("state_dict", "ema_state_dict", "raw_state_dict"):
            assert not any("radio" in name for name in checkpoint.get(part, {}))
        assert any("image_query_proj" in name for name in checkpoint["state_dict"])
        trained = sum(len(group["params"]) for group in checkpoint["optimizer_states"][0]["param_groups"])
        assert trained == sum(p.requires_grad for p in build_detector(spec.model, 3).parameters())

    user_spec = read_spec(None, [f"model.frozen_fm.checkpoint={radio_file}"])
    opened = open_detector(str(files[0]), user_spec)
    assert opened.detector.frozen_radio.loaded_from == radio_file
    images = torch.rand(1, 3, 64, 64)
    weights = {name.removeprefix("model.model."): t for name, t in load_checkpoint(files[0])["state_dict"].items()}
    expected = build_detector(spec.model, 3)
    expected.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(opened.detector.eval()(images).boxes, expected.eval()(images).boxes)

    (tmp_path / "radio.pth").rename(tmp_path / "moved.pth")
    with pytest.raises(CheckpointError, match=r"radio\.pth"):
        open_detector(str(files[0]), user_spec)
    moved = str(tmp_path / "moved.pth")
    again = open_detector(str(files[0]), read_spec(None, [f"model.frozen_fm.checkpoint={moved}"]))
    assert again.detector.frozen_radio.loaded_from == moved
    with torch.no_grad():
        torch.testing.assert_close(again.detector.eval()(images).boxes, expected.eval()(images).boxes)
    with pytest.raises(
        CheckpointError, match=r"model\.frozen_fm\.backbone is 'radio_v2-h' in the spec, but 'radio_v2-b'"
    ):
        open_detector(str(files[0]), read_spec(None, ["model.frozen_fm.backbone=radio_v2-h"]))

    onnx_file = tmp_path / "a.onnx"
    settings = {"export.checkpoint": files[0], "export.onnx_file": onnx_file, "model.frozen_fm.checkpoint": moved}
    given = [f"{name}={value}" for name, value in settings.items()]
    with pytest.raises(UserError, match=r"export\.batch_size: -1 "):
        export.run(read_spec(None, [*given, f"results_dir={tmp_path}"], "export"))


@pytest.mark.slow
def test_a_resumed_run_loads_radio_again(spec, tmp_path):
    fit.fit(spec)
    longer = dataclasses.replace(spec, train=dataclasses.replace(spec.train, num_epochs=2))
    fit.fit(longer)
    assert (tmp_path / "train" / "model_epoch_001.pth").exists()
