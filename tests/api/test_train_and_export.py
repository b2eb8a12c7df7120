"""Training, evaluation and export with a `Detector`, as in the commands."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import onnx
import pytest
import torch

from rtdetr_tool.api import RTDETR, Detector, PlainDetections, RFDETRNano, RFDETRSmall
from rtdetr_tool.api import results as result_forms
from rtdetr_tool.api.export import calibration_array
from rtdetr_tool.api.keywords import TRAIN, export_settings, leaves, train_settings
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.errors import CheckpointError, DataError, SpecError, UserError
from rtdetr_tool.formats.table import exported_formats
from rtdetr_tool.ops.classes import ClassEntry, ClassMap
from rtdetr_tool.spec import ExportSpec
from rtdetr_tool.spec.schema import field_names
from tests.api.small import SIDE, SMALL_RFDETR, SMALL_RTDETR, lively


@pytest.fixture(autouse=True)
def without_supervision(monkeypatch):
    monkeypatch.setattr(result_forms, "detections_class", lambda: PlainDetections)


@pytest.fixture(scope="module")
def trained(sample, tmp_path_factory):
    """An RT-DETR after one epoch, and the result of `train`."""
    torch.manual_seed(0)
    detector = lively(RTDETR("resnet_18", num_classes=7, device="cpu", **SMALL_RTDETR))
    output = tmp_path_factory.mktemp("run")
    result = detector.train(
        **sample.keywords, epochs=1, batch_size=3, lr=1e-5, lr_encoder=1e-6, output_dir=output, device="cpu",
        wandb=False, multi_scale=False,
    )  # fmt: skip
    yield detector, result, output
    shutil.rmtree(output)


# Keywords


def test_every_keyword_maps_to_existing_fields():
    values = {"device": "cpu", "multi_scale": False, "lr_drop": 3, "lr_scheduler": "cosine"}
    for name, rule in TRAIN.items():
        fields = [rule] if isinstance(rule, str) else list(rule(values.get(name, "a name")))
        assert fields and set(fields) <= set(field_names()), name


def test_export_accepts_the_keywords_of_the_original():
    tflite = {"format": "tflite", "quantization": "int8", "max_images": 20, "opset_version": 16, "layout": "rfdetr"}
    assert export_settings(tflite) == {
        "export.format": "tflite", "export.tflite.data_type": "INT8", "export.tflite.calibration_images": 20,
        "export.opset_version": 16, "export.layout": "rfdetr",
    }  # fmt: skip
    assert export_settings({"quantization": None, "max_images": 100}) == {}
    with pytest.raises(UserError, match="export has no keyword simplify: graphs are always simplified"):
        export_settings({"simplify": True})
    channels_last = np.zeros((5, 8, 6, 3), np.uint8)
    assert calibration_array(channels_last).shape == calibration_array(channels_last.transpose(0, 3, 1, 2)).shape
    assert calibration_array(channels_last).shape == (5, 3, 8, 6)


@pytest.mark.parametrize("name", [row.name for row in exported_formats()])
def test_precision_is_that_of_the_exported_format(name):
    section = getattr(ExportSpec(), name, None)
    for kind in ("fp16", "int8"):
        if section is None:
            with pytest.raises(UserError, match=r"quantization='....' is invalid for this format, .* FP32"):
                export_settings({"format": name, "quantization": kind})
        else:
            assert export_settings({"format": name, "quantization": kind})[f"export.{name}.data_type"] == kind.upper()
            assert export_settings({"format": name, "data_type": "FP32", "max_cost": 0.5}) == {
                "export.format": name, f"export.{name}.data_type": "FP32", f"export.{name}.max_cost": 0.5,
            }  # fmt: skip
    if not hasattr(section, "calibration_images"):
        assert export_settings({"format": name, "max_images": 7}) == {"export.format": name}


def test_a_precision_without_a_format_is_refused():
    with pytest.raises(
        UserError, match=r"no keyword max_cost: several fields .*: export.tflite.max_cost, export.openvino"
    ):
        export_settings({"max_cost": 0.2})


def test_a_lower_precision_from_python_lowers_the_precision(rtdetr, tmp_path):
    files = [
        rtdetr.export(tmp_path, format="openvino", output_name=kind, quantization=kind, max_cost=1.0)
        for kind in ("fp32", "fp16")
    ]
    sizes = [path.with_suffix(".bin").stat().st_size for path in files]
    assert sizes[1] < 0.6 * sizes[0]


def test_a_family_has_no_keywords_of_others(rtdetr):
    from rtdetr_tool import RTDETR

    for name in ("num_windows", "variant", "reg_max"):
        with pytest.raises(UserError, match=f"no keyword {name}"):
            RTDETR(backbone="resnet_18", **{name: 2})
    with pytest.raises(UserError, match=r"enabled: several fields .*: model.backbone_lora.enabled, model.frozen_fm"):
        RTDETR(backbone="resnet_18", enabled=True)


def test_keywords_set_fields_under_all_their_names():
    assert train_settings({"epochs": 5, "batch_size": 2, "lr": 1e-3, "warmup_steps": 7, "dataset_dir": "x"}) == {
        "train.num_epochs": 5, "dataset.batch_size": 2, "train.optim.lr": 1e-3, "train.optim.warmup_steps": 7,
        "dataset.dataset_dir": "x",
    }  # fmt: skip
    assert train_settings({"train.optim.lr": 1, "seed": 3}) == {"train.optim.lr": 1, "train.seed": 3}
    assert train_settings({"device": "cuda:1"}) == {"train.accelerator": "gpu", "train.gpu_ids": [1]}
    assert train_settings({"tensorboard": False, "mlflow": True, "project": "cells", "run": "first"}) == {
        "train.tensorboard": False, "mlflow.enable": True, "wandb.project": "cells", "mlflow.experiment": "cells",
        "wandb.name": "first", "mlflow.run_name": "first",
    }  # fmt: skip
    assert leaves("train")["results_dir"] == "train.results_dir"


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"epoch": 3}, "train has no keyword epoch; did you mean epochs"),
        ({"lr": 1, "learning": 2, "batchsize": 3}, "(?s)keyword learning.*batchsize; did you mean batch_size"),
        ({"epochs": 3, "num_epochs": 4}, "train.num_epochs is set twice, the second time as num_epochs"),
        ({"group_detr": 3}, "train has no keyword group_detr: it belongs to the model"),
        ({"num_queries": 100}, "train has no keyword num_queries: it belongs to the model"),
        ({"resolution": 320}, "train has no keyword resolution: this model has no fixed size; set train_spatial_size"),
        ({"enabled": True}, "keyword enabled: .*: train.early_stopping.enabled, train.supernet.enabled"),
        ({"device": "tpu"}, "device: 'tpu' is invalid; expected 'auto', 'cpu', 'mps', 'cuda' or 'cuda:N'"),
    ],
)
def test_invalid_keywords_are_reported(keywords, message):
    with pytest.raises(UserError, match=message):
        train_settings(keywords)


@pytest.mark.parametrize("callbacks", [[print], "EarlyStopping"])
def test_invalid_callbacks_are_reported(rtdetr, sample, tmp_path, callbacks):
    with pytest.raises(UserError, match=r"callbacks: a .* is invalid; expected a pytorch_lightning"):
        rtdetr.train(**sample.keywords, output_dir=tmp_path / "run", callbacks=callbacks)
    assert not (tmp_path / "run").exists()


def test_values_are_checked_as_in_a_spec(rtdetr, rfdetr, sample):
    with pytest.raises(SpecError, match=r"train.num_epochs: -1 is invalid"):
        rtdetr.train(**sample.keywords, epochs=-1)
    with pytest.raises(SpecError, match=r"model.rfdetr.resolution: 100 is invalid.*nearest: 96 or 128"):
        rfdetr.train(**{**sample.keywords, "model.rfdetr.resolution": 100})
    with pytest.raises(DataError, match="no/such/folder"):
        rtdetr.train(dataset_dir="no/such/folder")


# Training


def test_a_trained_detector_has_the_classes_of_the_dataset(trained, sample):
    detector, result, output = trained
    assert result.epochs == 1 and result.latest_path.parent == output
    assert detector.class_names == ["cat", "dog"] and detector.spec.dataset.num_classes == 2
    assert detector.source == str(result.best_path or result.latest_path)
    actual = detector.predict(sample.image(1), threshold=0.0)
    assert set(actual["class_name"]) <= {"cat", "dog"} and len(actual) == 8


@pytest.mark.slow
def test_training_again_starts_from_the_current_weights(trained, sample, tmp_path):
    detector = copy.copy(trained[0])
    before = {name: tensor.clone() for name, tensor in detector.network.state_dict().items()}
    detector.train(**sample.keywords, epochs=1, lr=1e-12, lr_encoder=1e-12, weight_decay=0, device="cpu", wandb=False,
                   output_dir=tmp_path, multi_scale=False)  # fmt: skip
    after = detector.network.state_dict()
    assert detector.network is not trained[0].network
    for name, parameter in trained[0].network.named_parameters():
        assert torch.allclose(after[name], before[name], atol=1e-6), name
        assert parameter is not None


@pytest.mark.slow
def test_training_with_reordered_classes_keeps_the_rows_of_each_class(trained, sample, tmp_path, caplog):
    content = json.loads(json.dumps(sample.coco))
    content["categories"] = [{"id": 1, "name": "ape"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "cat"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = {1: 3, 2: 2}[annotation["category_id"]]
    (tmp_path / "labels.json").write_text(json.dumps(content))
    source = {**sample.source, "json_file": str(tmp_path / "labels.json")}
    detector = copy.copy(trained[0])
    before = detector.network.decoder.enc_score_head.weight.detach().clone()
    assert detector.class_names == ["cat", "dog"]
    detector.train(train_data_sources=[source], val_data_sources=source, num_workers=0, epochs=1, lr=1e-12,
                   lr_encoder=1e-12, weight_decay=0, device="cpu", wandb=False, output_dir=tmp_path / "run",
                   multi_scale=False)  # fmt: skip
    assert detector.class_names == ["ape", "dog", "cat"]
    assert torch.allclose(detector.network.decoder.enc_score_head.weight[[2, 1]], before, atol=1e-6)
    assert "Copied the class rows of 2 classes by name: dog, cat." in caplog.text
    assert "New classes, which keep their initial values: ape." in caplog.text


def test_random_class_heads_are_not_reported_as_copied(sample, tmp_path, caplog):
    detector = RTDETR("resnet_18", num_classes=2, device="cpu", **SMALL_RTDETR)
    detector.train(**sample.keywords, epochs=1, device="cpu", wandb=False, output_dir=tmp_path, multi_scale=False,
                   **{"train.is_dry_run": True})  # fmt: skip
    assert "class rows" not in caplog.text


@pytest.mark.slow
def test_a_run_is_only_resumed_on_request(trained, sample):
    output = trained[2]
    again = {**sample.keywords, "output_dir": output, "device": "cpu", "wandb": False, "multi_scale": False}
    detector = copy.copy(trained[0])
    with pytest.raises(UserError, match=r"already contains a run \(model_epoch_000.pth\). Pass resume=True"):
        detector.train(**again, epochs=2)
    result = detector.train(**again, batch_size=3, epochs=2, resume=True)
    assert result.resumed_from.name == "model_epoch_000.pth" and result.latest_path.name == "model_epoch_001.pth"


@pytest.mark.slow
def test_rfdetr_trains_with_one_more_logit_than_classes(sample, tmp_path):
    detector = RFDETRNano(pretrain_weights=None, device="cpu", **SMALL_RFDETR)
    assert detector.spec.dataset.num_classes == 80  # the spec's default; the number was not set
    result = detector.train(
        **sample.keywords, epochs=1, batch_size=3, output_dir=tmp_path, device="cpu", wandb=False, multi_scale=False
    )
    assert detector.spec.dataset.num_classes == 3 and detector.class_names == ["cat", "dog"]
    again = Detector.from_checkpoint(result.latest_path, device="cpu")
    assert type(again) is RFDETRNano and again.input_size == (SIDE, SIDE) and again.class_names == ["cat", "dog"]
    with pytest.raises(UserError, match="is a RFDETRNano, not a RFDETRSmall"):
        RFDETRSmall.from_checkpoint(result.latest_path)
    assert RFDETRNano.from_checkpoint(result.latest_path, num_classes=5).spec.dataset.num_classes == 6
    with pytest.raises(CheckpointError, match="dec_layers is 3 in the spec, but 1 in the checkpoint"):
        Detector.from_checkpoint(result.latest_path, dec_layers=3)


# Scores


def test_unscorable_data_is_reported(trained):
    with pytest.raises(UserError, match="split 'train' is invalid; expected 'test' or 'val'"):
        trained[0].evaluate("train")
    with pytest.raises(DataError, match="test_data_sources"):
        trained[0].evaluate()
    with pytest.raises(UserError, match="evaluate has no keyword epochs"):
        trained[0].evaluate(epochs=3)


# Files


def test_an_exported_file_can_be_loaded_as_a_detector(trained, sample, tmp_path):
    detector = trained[0]
    path = detector.export(tmp_path / "out", batch_size=2, notes="for the shelf")
    assert path == tmp_path / "out" / "rtdetr-resnet_18.onnx"
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    deployed = Detector.from_checkpoint(path, device="cpu")
    assert deployed.class_names == ["cat", "dog"] and type(deployed) is RTDETR and deployed.network is None
    expected = detector.predict(sample.image(1), threshold=0.0)
    actual = deployed.predict(sample.image(1), threshold=0.0)
    assert np.allclose(actual.confidence, expected.confidence, atol=1e-4)
    with pytest.raises(UserError, match=r"only supports inputs of 64 x 64 \(height x width\)"):
        deployed.predict(sample.image(1), shape=(96, 96))
    with pytest.raises(UserError, match=r"train: .*rtdetr-resnet_18.onnx is a deployed file"):
        deployed.train(epochs=1)
    with pytest.raises(UserError, match=r"already exists; set export.overwrite=true"):
        detector.export(tmp_path / "out")


@pytest.mark.slow
def test_an_rfdetr_is_exported_without_the_groups_of_training(rfdetr, tmp_path):
    path = rfdetr.export(tmp_path, shape=(96, 64), output_name="mine.onnx")  # or "mine"
    dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert path.name == "mine.onnx" and [d.dim_value for d in dims] == [1, 3, 96, 64]
    assert (16, 256) not in {tuple(tensor.dims)[-2:] for tensor in onnx.load(path).graph.initializer}
    assert rfdetr.network.decoder.refpoint_embed.weight.shape[0] == 16  # kept for further training


def test_roboflows_bundle_loads_here_and_in_roboflows_package(sample, tmp_path, rfdetr, monkeypatch):
    with pytest.raises(UserError, match="the classes have no names"):
        rfdetr.export_for_roboflow(tmp_path)
    monkeypatch.setattr(rfdetr._opened, "class_map", ClassMap([ClassEntry(0, 1, "cat"), ClassEntry(1, 2, "dog")], 3))
    rfdetr.export_for_roboflow(tmp_path / "bundle")
    assert (tmp_path / "bundle" / "class_names.txt").read_text() == "cat\ndog"
    assert sorted(file.name for file in (tmp_path / "bundle").iterdir()) == ["class_names.txt", "weights.pt"]
    again = Detector.from_checkpoint(tmp_path / "bundle" / "weights.pt", device="cpu")
    assert again.class_names == ["cat", "dog"] and again.input_size == rfdetr.input_size
    expected = rfdetr.predict(sample.image(1), threshold=0.0)
    assert np.allclose(again.predict(sample.image(1), threshold=0.0).xyxy, expected.xyxy, atol=1e-3)
    args = load_checkpoint(tmp_path / "bundle" / "weights.pt")["args"]
    assert args["num_classes"] == 2 and args["dataset_dir"] is None and args["patch_size"] == 16


def test_names_in_roboflows_bundle_are_at_their_class_index(tmp_path, rfdetr, monkeypatch):
    """Category ids from 1 may leave index 0 without a class; the list of names has no gaps."""
    monkeypatch.setattr(rfdetr._opened, "class_map", ClassMap([ClassEntry(1, 1, "cat"), ClassEntry(2, 2, "dog")], 3))
    rfdetr.export_for_roboflow(tmp_path)
    again = Detector.from_checkpoint(tmp_path / "weights.pt", device="cpu")
    assert [again.class_map.name_of(index) for index in (1, 2)] == ["cat", "dog"]


def test_only_rfdetr_can_be_exported_for_roboflow(trained, tmp_path):
    with pytest.raises(UserError, match="Roboflow does not support RT-DETR"):
        trained[0].export_for_roboflow(tmp_path)


# Construction


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RTDETR("resnet_51"), "model.backbone: 'resnet_51' is invalid"),
        (lambda: RFDETRNano(pretrain_weights=None, resolution=100), "resolution: 100 is invalid.*96 or 128"),
        (lambda: RFDETRNano(pretrain_weights=None, layers=3), "RFDETRNano has no keyword layers"),
        (lambda: RTDETR("resnet_18", device="cuda:99"), "device: 'cuda:99' is not available"),
        (lambda: RTDETR("resnet_18", device="mps"), r"device: 'mps' is not available \(.{1,200}\); expected"),
        (lambda: RFDETRNano("no/such.pth"), "no/such.pth does not exist"),
        (lambda: Detector.from_checkpoint("no/such.onnx"), "There is no ONNX file at no/such.onnx"),
    ],
)
def test_invalid_detectors_are_reported(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_rfdetr_trains_with_its_recipe_unless_told_otherwise(rfdetr, sample, tmp_path):
    from rtdetr_tool.api.keywords import train_settings
    from rtdetr_tool.api.training import training_spec

    def spec_of(**keywords):
        given = {**sample.keywords, "output_dir": str(tmp_path), **keywords}
        return training_spec(rfdetr._trainable("train"), train_settings(given))

    spec = spec_of()
    assert (spec.train.num_epochs, spec.train.enable_ema, spec.train.optim.lr_backbone) == (100, True, 1.5e-4)
    augmentation = spec.dataset.augmentation
    assert (augmentation.distortion_prob, augmentation.scale_jitter_prob) == (0.0, 0.5)
    assert augmentation.train_spatial_size == [augmentation.multi_scales[-1]] * 2 > [64, 64]
    assert spec_of(multi_scale=False).dataset.augmentation.train_spatial_size == [64, 64]
    assert spec_of(lr_encoder=1e-5, use_ema=False).train.enable_ema is False
