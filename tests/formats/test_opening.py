"""Opening weights files: our checkpoints need no spec, and a spec must not contradict them."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from safetensors.torch import save_file

from rtdetr_tool.checkpoints.io import save_checkpoint
from rtdetr_tool.checkpoints.metadata import build_metadata
from rtdetr_tool.errors import CheckpointError, UserError
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.formats.opening import open_model
from rtdetr_tool.formats.table import FORMATS
from rtdetr_tool.formats.torch.runtime import TorchRuntime
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.classes import ClassEntry, ClassMap
from rtdetr_tool.spec import AugmentationSpec, DatasetSpec, ExperimentSpec, ModelSpec, read_spec, spec_to_dict

CLASSES = ClassMap([ClassEntry(0, 3, "cat"), ClassEntry(1, 7, "big dog")], 2)
SPEC = ExperimentSpec(
    model=ModelSpec(
        backbone="resnet_18d", hidden_dim=32, nheads=4, dim_feedforward=32, feat_channels=[32, 32, 32],
        num_queries=12, num_select=9, dec_layers=2, dn_number=4,
    ),
    dataset=DatasetSpec(
        num_classes=2, class_ids="contiguous", batch_size=3,
        augmentation=AugmentationSpec(eval_spatial_size=[64, 96], preserve_aspect_ratio=True),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(1)
    return build_detector(SPEC.model, 2)


def write(detector, path, spec=SPEC, weights="raw"):
    payload = {
        "state_dict": {f"model.model.{name}": tensor for name, tensor in detector.state_dict().items()},
        "tao_model": "rtdetr",
        "rtdetr_tool": build_metadata("0.1.0", spec_to_dict(spec), CLASSES.to_list(), weights),
    }
    return str(save_checkpoint(payload, path))


@pytest.fixture(scope="module")
def checkpoint(detector, tmp_path_factory):
    return write(detector, tmp_path_factory.mktemp("open") / "model_epoch_003.pth")


def test_a_checkpoint_of_ours_opens_with_an_empty_spec(checkpoint, detector):
    opened = open_model(checkpoint, read_spec(None))
    assert opened.spec.model == SPEC.model
    assert opened.spec.dataset.num_classes == 2 and opened.spec.dataset.class_ids == "contiguous"
    assert list(opened.spec.dataset.augmentation.eval_spatial_size) == [64, 96]
    assert opened.spec.dataset.augmentation.preserve_aspect_ratio is True
    assert opened.runtime.class_map.to_list() == CLASSES.to_list()
    images = torch.rand(2, 3, 64, 96)
    torch.testing.assert_close(
        opened.runtime.predict(images).logits, TorchRuntime(detector, CLASSES).predict(images).logits
    )


def test_what_belongs_to_the_run_stays_the_users(checkpoint):
    source = "dataset.test_data_sources={image_dir: images, json_file: test.json}"
    overrides = ["results_dir=here", f"evaluate.checkpoint={checkpoint}", source]
    opened = open_model(checkpoint, read_spec(None, overrides, "evaluate"))
    assert opened.spec.results_dir == "here"
    assert opened.spec.dataset.batch_size == DatasetSpec().batch_size
    assert opened.spec.dataset.test_data_sources == {"image_dir": "images", "json_file": "test.json"}
    assert opened.spec.evaluate.results_dir == "here/evaluate"


def test_what_the_user_says_about_size_and_queries_wins_with_a_warning(checkpoint, caplog):
    overrides = [
        "dataset.augmentation.eval_spatial_size=[128,128]",
        "model.num_queries=5",
        "model.num_select=4",
    ]
    opened = open_model(checkpoint, read_spec(None, overrides))
    for said in ("128 x 128 (height x width)", "trained for 96 x 96", "num_queries is 5", "num_select is 4"):
        assert said in caplog.text
    assert list(opened.spec.dataset.augmentation.eval_spatial_size) == [128, 128]
    assert opened.spec.model.num_select == 4
    assert opened.runtime.predict(torch.rand(1, 3, 128, 128)).logits.shape == (1, 5, 2)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.backbone=resnet_50", ("model.backbone", "resnet_50", "resnet_18d")),
        ("model.dec_layers=6", ("model.dec_layers", "6", "2")),
        ("dataset.num_classes=80", ("dataset.num_classes", "80", "2")),
    ],
)
def test_a_contradiction_is_an_error_that_names_both_values(checkpoint, override, words):
    with pytest.raises(CheckpointError) as error:
        open_model(checkpoint, read_spec(None, [override]))
    assert all(word in str(error.value) for word in (*words, "model_epoch_003.pth"))


def test_a_value_given_again_as_it_is_stored_is_no_contradiction(checkpoint):
    open_model(checkpoint, read_spec(None, ["model.backbone=resnet_18d", "dataset.num_classes=2"]))


def test_the_pretrained_weights_of_the_training_run_are_not_asked_for_again(detector, tmp_path):
    model = dataclasses.replace(SPEC.model, pretrained_backbone_path=str(tmp_path / "gone.pth"))
    path = write(detector, tmp_path / "m.pth", dataclasses.replace(SPEC, model=model))
    open_model(path, read_spec(None)).runtime.predict(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize(("weights", "said"), [("ema", "averaged (EMA)"), ("raw", "trained")])
@pytest.mark.parametrize("arch", ["rtdetr", "rfdetr"])
def test_the_log_says_which_weights_of_which_model_are_used(detector, tmp_path, caplog, arch, weights, said):
    spec, kind = SPEC, "rtdetr-resnet_18d"
    if arch == "rfdetr":
        own = RfdetrSpec(variant="small", resolution=64, dec_layers=1, num_queries=8, group_detr=1, dim_feedforward=24)
        spec, kind = dataclasses.replace(SPEC, model=ModelSpec(arch="rfdetr", rfdetr=own)), "rfdetr-small"
        detector = build_detector(spec.model, 2)
    path = write(detector, tmp_path / "m.pth", spec, weights)
    with caplog.at_level(logging.INFO, "rtdetr_tool.formats.torch.file"):
        open_model(path, read_spec(None))
    assert any(f"{said} weights of {kind}, 2 class outputs" in record.getMessage() for record in caplog.records)


OVERRIDES = [
    "model.backbone=resnet_18d", "model.hidden_dim=32", "model.nheads=4", "model.dim_feedforward=32",
    "model.feat_channels=[32,32,32]", "model.num_queries=12", "model.num_select=9", "model.dec_layers=2",
    "model.dn_number=4", "dataset.num_classes=2",
]  # fmt: skip


@pytest.mark.parametrize("suffix", FORMATS["torch"].suffixes)
def test_bare_weights_take_architecture_from_the_spec_and_have_no_classes(detector, tmp_path, caplog, suffix):
    path, state = tmp_path / f"weights{suffix}", detector.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    opened = open_model(str(path), read_spec(None, OVERRIDES))
    assert opened.runtime.class_map is None
    assert "using the spec's values or their defaults" in caplog.text
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(opened.runtime.predict(images).boxes, TorchRuntime(detector, None).predict(images).boxes)


def test_bare_weights_that_do_not_fit_the_spec_are_refused(detector, tmp_path):
    torch.save(detector.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        open_model(str(tmp_path / "weights.pth"), read_spec(None, [*OVERRIDES[:-1], "dataset.num_classes=5"]))


@pytest.mark.parametrize("name", ["model.caffemodel", "weights", "a.h5", ""])
def test_a_file_of_another_kind_is_refused_with_the_list_of_what_is_allowed(tmp_path, name):
    with pytest.raises(UserError) as error:
        open_model(str(tmp_path / name), read_spec(None))
    assert error.value.exit_code == 2
    assert all(suffix in str(error.value) for row in FORMATS.values() for suffix in row.suffixes)


@pytest.mark.parametrize("name", ["model.onnx", "model.engine", "model.trt", "model.ENGINE"])
def test_a_missing_graph_or_engine_is_named(tmp_path, name):
    with pytest.raises(CheckpointError, match=name):
        open_model(str(tmp_path / name), read_spec(None))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.pth"):
        open_model(str(tmp_path / "absent.pth"), read_spec(None))


class Bomb:
    """Runs code if it is unpickled without protection."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_would_run_code_is_refused_and_nothing_runs(tmp_path):
    torch.save({"state_dict": {}, "x": Bomb(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        open_model(str(tmp_path / "evil.pth"), read_spec(None))
    assert not (tmp_path / "ran").exists()
