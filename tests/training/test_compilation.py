"""`train.compile`: few graphs, the same training, and a clear message if compilation fails."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch._dynamo.testing import CompileCounter

from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.errors import UserError
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.training import compilation
from rtdetr_tool.training.compilation import compile_network
from rtdetr_tool.training.fit import fit
from tests.training.test_ddp import NANO, TINY


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("model", [TINY, pytest.param(NANO, marks=pytest.mark.slow)], ids=["rtdetr", "rfdetr"])
@pytest.mark.slow
def test_multi_scale_training_compiles_each_part_twice(model, monkeypatch):
    counter = CompileCounter()
    monkeypatch.setattr(compilation, "BACKEND", counter)
    detector = build_detector(spec_from_dict({"results_dir": "unused", "model": model}).model, 3).train()
    images = [torch.rand(2, 3, side, side) for side in (64, 96, 128, 160, 192)]
    expected = [detector.features(batch) for batch in images]
    compile_network(detector)
    counts = []
    for batch, levels in zip(images, expected, strict=True):
        torch.testing.assert_close(detector.features(batch), levels, rtol=1e-4, atol=1e-4)
        counts.append(counter.frame_count)
    assert counts == [2, 4, 4, 4, 4]


@pytest.mark.slow
def test_a_compiled_run_learns_the_same_weights(make_spec, tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    changes = {"train__activation_checkpoint": True, "train__optim__optimizer": "SGD", "train__optim__lr": 1e-3}
    weights = []
    for name, compiled in (("plain", False), ("compiled", True)):
        folder = tmp_path / name
        fit(make_spec(**changes, train__compile=compiled, train__results_dir=str(folder), train__enable_ema=True))
        weights.append(load_checkpoint(folder / "model_epoch_000.pth")["state_dict"])
    assert list(weights[0]) == list(weights[1])
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_a_failed_compilation_names_the_field(make_spec, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(compilation, "BACKEND", broken)
    with pytest.raises(UserError, match=r"no C\+\+ compiler\. Set train\.compile to false"):
        fit(make_spec(train__compile=True), callbacks=[pl.Callback()])
