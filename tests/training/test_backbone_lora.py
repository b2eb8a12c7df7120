"""Adapters of the backbone (LoRA, DoRA through peft): training, checkpoints, merging."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from rtdetr_tool.catalog import ENCODERS
from rtdetr_tool.checkpoints.adapters import has_adapters, merge_adapters
from rtdetr_tool.checkpoints.detector_file import read_detector
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.errors import CheckpointError, UserError
from rtdetr_tool.models.adapters import add_adapters
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.training.fit import fit
from rtdetr_tool.training.module import DetectorModule

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("peft", "accelerate", "transformers")), reason="requires peft"
)
SIDE = 64
WIDTH = 32
CLASSES = [{"index": 0, "id": 1, "name": "cat"}, {"index": 1, "id": 2, "name": "dog"}]


@pytest.fixture(scope="module", autouse=True)
def small_vit():
    with pytest.MonkeyPatch.context() as patch:
        for name, row in ENCODERS.items():
            patch.setitem(ENCODERS, name, row._replace(width=WIDTH, depth=4, num_heads=2))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A spec of a small RF-DETR with adapters, as plain data, with four images."""
    root = tmp_path_factory.mktemp("lora")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, 5):
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(root / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        box = {"id": number, "image_id": number, "category_id": 1 + number % 2, "bbox": [8, 8, 30, 24], "area": 720}
        annotations.append(box)
    categories = [{"id": entry["id"], "name": entry["name"]} for entry in CLASSES]
    labels = root / "labels.json"
    labels.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    source = {"image_dir": str(root), "json_file": str(labels)}
    return {
        "model": {
            "arch": "rfdetr",
            "rfdetr": {
                "resolution": SIDE, "dec_layers": 1, "num_queries": 8, "group_detr": 2, "dim_feedforward": 24,
                "out_feature_indexes": [1, 3],
            },
            "backbone_lora": {"enabled": True, "rank": 4, "alpha": 8},
        },
        "dataset": {
            "train_data_sources": [source], "val_data_sources": source, "batch_size": 2, "workers": 0,
            "augmentation": {"multi_scales": []},
        },
        "train": {"num_epochs": 2, "accelerator": "cpu", "report": False, "tensorboard": False},
    }  # fmt: skip


def spec_of(data, folder, lora=None, **train):
    data = json.loads(json.dumps(data))
    data["train"] |= {"results_dir": str(folder), **train}
    data["model"]["backbone_lora"] |= lora or {}
    return spec_from_dict(data, "train")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run of two epochs."""
    folder = tmp_path_factory.mktemp("run")
    return fit(spec_of(data, folder)), folder


def weights(path):
    return load_checkpoint(path)["state_dict"]


def perturbed(detector):
    """A detector with adapters that change its outputs."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return detector


@pytest.mark.parametrize("dora", [True, False])
def test_merged_weights_are_those_of_peft_and_give_the_same_output(data, dora, tmp_path):
    spec = spec_of(data, tmp_path)
    detector = build_detector(spec.model, 3)
    layers = add_adapters(detector, rank=4, alpha=8.0, dora=dora, modules=None)
    assert len(layers) == 9  # query, key and value of three blocks; nothing uses the other blocks
    perturbed(detector.eval())
    images = torch.rand(1, 3, SIDE, SIDE)
    merged = build_detector(spec.model, 3).eval()
    merged.load_state_dict(merge_adapters(detector.state_dict(), 8.0))
    with torch.no_grad():
        torch.testing.assert_close(merged(images).logits, detector(images).logits, atol=1e-5, rtol=1e-4)
    layer = detector.backbone.get_submodule(layers[0])
    layer.merge()
    expected = layer.base_layer.weight
    torch.testing.assert_close(merged.backbone.get_submodule(layers[0]).weight, expected, atol=1e-6, rtol=1e-5)


def test_only_the_adapters_of_the_backbone_are_trained(data, run, tmp_path):
    module = DetectorModule(spec_of(data, tmp_path), ClassMap.from_list(CLASSES))
    trained = {name for name, p in module.detector.backbone.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert all(p.requires_grad for p in module.detector.decoder.parameters())
    checkpoint = load_checkpoint(run[0].latest_path)
    raw = checkpoint["raw_state_dict"]
    start = DetectorModule(spec_of(data, tmp_path), ClassMap.from_list(CLASSES))
    changed = {name for name, tensor in raw.items() if not torch.equal(tensor, checkpoint["state_dict"][name])}
    assert changed and not any(name.startswith("model.model.backbone") and ".lora_" not in name for name in changed)
    assert set(raw) == set(start.state_dict())


def test_the_adapters_are_in_the_groups_of_their_blocks(data, tmp_path):
    module = DetectorModule(spec_of(data, tmp_path), ClassMap.from_list(CLASSES))
    groups = {g["name"]: g for g in module.parameter_groups() if g["name"].startswith("backbone")}
    assert [len(g["params"]) for g in groups.values()] == [9, 9, 9]  # three tensors of three layers in each block
    rates = [g["lr"] for g in groups.values()]
    assert rates[0] == pytest.approx(0.8 * rates[1]) and rates[1] == pytest.approx(0.8 * rates[2])
    assert {g["weight_decay"] for g in groups.values()} == {1e-4}


def test_the_log_reports_what_is_frozen(data, tmp_path, caplog):
    with caplog.at_level("INFO", "rtdetr_tool"):
        DetectorModule(spec_of(data, tmp_path), ClassMap.from_list(CLASSES))
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Frozen")]
    assert "DoRA adapters of rank 4 in 9 layers" in line and f"{9 * (2 * 4 * WIDTH + WIDTH):,} of" in line


def test_a_resumed_run_ends_with_the_same_weights(data, run, tmp_path):
    class Stop(Exception):
        pass

    from pytorch_lightning import Callback

    class StopAfterOne(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                raise Stop

    with pytest.raises(Stop):
        fit(spec_of(data, tmp_path), [StopAfterOne()])
    result = fit(spec_of(data, tmp_path))
    assert result.resumed_from is not None
    expected, found = weights(run[0].latest_path), weights(result.latest_path)
    assert set(expected) == set(found) and has_adapters(found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_does_not_resume_with_other_adapters(data, run):
    with pytest.raises(CheckpointError, match=r"model.backbone_lora.alpha is 4.0, but 8.0 in the checkpoint"):
        fit(spec_of(data, run[1], {"alpha": 4.0}, num_epochs=3))


def test_a_checkpoint_opens_without_peft_and_with_the_averaged_weights(data, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    file = read_detector(run[0].latest_path)
    assert not has_adapters(file.weights)
    averaged = {name.removeprefix("model.model."): t for name, t in weights(run[0].latest_path).items()}
    expected = merge_adapters(averaged, 8.0)
    assert set(expected) == set(file.weights)
    assert all(torch.equal(expected[name], file.weights[name]) for name in expected)
    from rtdetr_tool.api import Detector

    detector = Detector.from_checkpoint(str(run[0].latest_path), device="cpu")
    torch.testing.assert_close(detector.network.state_dict(), file.weights)


def test_a_run_starts_from_a_checkpoint_with_adapters(data, run, tmp_path):
    """Its merged weights are the new base, and new adapters have no effect at first."""
    path = str(run[0].latest_path)
    spec = spec_of(data, tmp_path, pretrained_model_path=path)
    module = DetectorModule(spec, ClassMap.from_list(CLASSES))
    module.load_initial_weights()
    expected = read_detector(path).weights
    found = merge_adapters(module.detector.state_dict(), 8.0)
    for name, tensor in expected.items():
        if "class_embed" not in name:  # whose last row belongs to no class and is not copied
            torch.testing.assert_close(found[name], tensor, msg=name)


@pytest.mark.slow
def test_the_export_contains_the_merged_weights(data, run, tmp_path):
    from rtdetr_tool.api import Detector

    detector = Detector.from_checkpoint(str(run[0].latest_path), device="cpu")
    path = detector.export(str(tmp_path))  # compares the graph with the detector
    image = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    ours, exported = (d.predict(image, threshold=0.0) for d in (detector, Detector.from_checkpoint(str(path))))
    np.testing.assert_allclose(np.sort(exported.confidence), np.sort(ours.confidence), atol=1e-3)


def test_a_timm_vit_has_adapters_in_rtdetr(tmp_path):
    spec = spec_from_dict(
        {
            "model": {
                "backbone": "timm/edgenext_xx_small", "backbone_lora": {"enabled": True, "dora": False},
                "hidden_dim": 16, "nheads": 2, "feat_channels": [16, 16, 16], "dim_feedforward": 16,
            },
        }
    )  # fmt: skip
    detector = build_detector(spec.model, 3)
    layers = add_adapters(detector, 2, 2.0, False, None)
    assert layers and all(name.endswith("qkv") for name in layers)
    before = {n: p.clone() for n, p in detector.backbone.named_parameters()}
    detector.train()(torch.rand(1, 3, SIDE, SIDE)).logits.sum().backward()
    gradients = {n for n, p in detector.backbone.named_parameters() if p.grad is not None}
    assert gradients == {n for n in before if ".lora_" in n}
    assert not has_adapters(merge_adapters(detector.state_dict(), 2.0))


def test_a_backbone_without_attention_is_refused():
    spec = spec_from_dict({"model": {"backbone": "resnet_18", "hidden_dim": 16, "feat_channels": [16, 16, 16]}})
    with pytest.raises(UserError, match="no linear attention layers"):
        add_adapters(build_detector(spec.model, 3), 2, 2.0, True, None)


def test_modules_selects_layers_by_name(data, tmp_path):
    detector = build_detector(spec_of(data, tmp_path).model, 3)
    layers = add_adapters(detector, 2, 2.0, True, ["fc1"], frozen=["backbone.blocks.1"])
    assert layers == ["blocks.0.fc1", "blocks.2.fc1"]


def test_a_missing_peft_is_one_message_with_the_command(data, tmp_path, monkeypatch):
    monkeypatch.setattr("rtdetr_tool.models.adapters.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'model.backbone_lora requires peft: pip install "rtdetr-tool\[lora\]"'):
        DetectorModule(spec_of(data, tmp_path), ClassMap.from_list(CLASSES))


def test_a_damaged_adapter_is_refused(run):
    broken = dict(weights(run[0].latest_path))
    name = next(name for name in broken if name.endswith("lora_B.default.weight"))
    with pytest.raises(CheckpointError, match="does not fit its layer"):
        merge_adapters({**broken, name: broken[name][:, :1]})
    del broken[name]
    with pytest.raises(CheckpointError, match="incomplete"):
        merge_adapters(broken)


def test_a_checkpoint_of_the_package_with_adapters_is_merged_as_by_the_package():
    """Names and merged weights are those of rfdetr's own classes."""
    config = pytest.importorskip("rfdetr.config", reason="requires the package rfdetr")
    from rfdetr._namespace import _namespace_from_configs
    from rfdetr.models import build_model
    from rfdetr.models.weights import apply_lora

    from rtdetr_tool.families.rfdetr.names import from_rfdetr, has_rfdetr_names

    with pytest.warns(UserWarning, match="pretrain_weights=None"):
        settings = config.RFDETRNanoConfig(pretrain_weights=None, device="cpu", dec_layers=1, num_queries=8)
    model = build_model(_namespace_from_configs(settings, config.TrainConfig(dataset_dir=".")))
    apply_lora(model)
    perturbed(model)
    state = model.state_dict()
    assert has_rfdetr_names(state)
    found = from_rfdetr(state)
    model.backbone[0].encoder = model.backbone[0].encoder.merge_and_unload()
    expected = from_rfdetr(model.state_dict())
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5, msg=name)
