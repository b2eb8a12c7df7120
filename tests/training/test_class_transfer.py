"""Starting from weights of other classes: class rows are copied by name, for every format and entry point."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch

from rtdetr_tool.checkpoints.class_rows import is_class_tensor
from rtdetr_tool.checkpoints.io import save_detector
from rtdetr_tool.checkpoints.metadata import build_metadata
from rtdetr_tool.data.build import build_train_dataset
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.spec import spec_to_dict
from rtdetr_tool.training.fit import fit
from rtdetr_tool.training.module import DetectorModule
from scripts.convert_dataset import write_format

TRAINED = ("green", "blue", "red")  # by row, in the file that runs start from
RFDETR = {
    "model__arch": "rfdetr",
    "model__rfdetr": RfdetrSpec(
        resolution=64, num_queries=5, group_detr=2, dim_feedforward=16, dec_layers=1, patch_size=16, num_windows=1
    ),
}


def entries(*names):
    return [{"index": index, "id": index, "name": name} for index, name in enumerate(names)]


@pytest.fixture(scope="module")
def formats(sources, tmp_path_factory):
    """The drawn data with the classes red and green, as a folder of each format."""
    content = json.loads(Path(sources["train"]["json_file"]).read_text())
    images = {split: Path(sources["train"]["image_dir"]) for split in ("train", "val")}
    root = tmp_path_factory.mktemp("formats")
    return {name: write_format(name, root / name, {"train": content, "val": content}, images)
            for name in ("coco", "yolo", "voc")}  # fmt: skip


def weights_file(spec, folder, names=TRAINED):
    torch.manual_seed(3)
    rows = len(TRAINED) + (spec.model.arch == "rfdetr")
    weights = build_detector(spec.model, rows).state_dict()
    meta = build_metadata("", {**spec_to_dict(spec), "dataset": {"num_classes": rows}}, entries(*names))
    return save_detector(weights, meta, folder / "trained.pth"), weights


def module_of(spec) -> DetectorModule:
    torch.manual_seed(4)
    return DetectorModule(spec, build_train_dataset(spec.dataset).class_map)


@pytest.mark.parametrize("name", ["coco", "yolo", "voc"])
@pytest.mark.parametrize("family", ["rtdetr", "rfdetr"])
def test_a_class_keeps_its_rows_in_every_format(formats, make_spec, tmp_path, caplog, family, name):
    changes = RFDETR if family == "rfdetr" else {}
    data = [{"dataset_dir": str(formats[name]), "split": "train"}]
    spec = make_spec(dataset__train_data_sources=data, dataset__num_classes=None, **changes)
    path, given = weights_file(spec, tmp_path)
    spec = dataclasses.replace(spec, train=dataclasses.replace(spec.train, pretrained_model_path=str(path)))
    module = module_of(spec)
    caplog.set_level(logging.INFO)
    module.load_initial_weights()
    row_of = {entry.name: entry.index for entry in module.class_map.entries}
    assert set(row_of) == {"red", "green"}
    heads = {name: tensor for name, tensor in module.detector.state_dict().items() if is_class_tensor(name)}
    for tensor_name, tensor in heads.items():
        for class_name, row in row_of.items():
            assert torch.equal(tensor[row], given[tensor_name][TRAINED.index(class_name)]), tensor_name
        if len(tensor) > 2:  # padding, or the row of no class
            assert torch.equal(tensor[2], given[tensor_name][3]), tensor_name
    assert "Copied the class rows of 2 classes by name" in caplog.text
    assert f"Dropped classes of {path} that the dataset does not have: blue." in caplog.text


def test_rows_of_a_file_without_names_are_copied_by_position_with_a_warning(make_spec, tmp_path, caplog):
    spec = make_spec(dataset__num_classes=3)
    path, given = weights_file(spec, tmp_path, names=())
    spec = dataclasses.replace(spec, train=dataclasses.replace(spec.train, pretrained_model_path=str(path)))
    module = module_of(spec)
    module.load_initial_weights()
    assert torch.equal(module.detector.decoder.enc_score_head.weight, given["decoder.enc_score_head.weight"])
    assert f"Copied class rows by position, because {path} has no class names" in caplog.text


def test_the_advice_of_a_refused_resume_keeps_the_classes(sources, make_spec, tmp_path):
    """Resuming with the ids of two classes exchanged is refused; starting from the file gives the same detections."""
    spec = make_spec(train__optim__lr=1e-9, train__optim__lr_backbone=1e-9)
    fit(spec)
    content = json.loads(Path(sources["train"]["json_file"]).read_text())
    for entry in content["categories"]:
        entry["id"] = 3 - entry["id"]
    for entry in content["annotations"]:
        entry["category_id"] = 3 - entry["category_id"]
    (tmp_path / "exchanged.json").write_text(json.dumps(content))
    exchanged = {**sources["train"], "json_file": str(tmp_path / "exchanged.json")}
    data = dataclasses.replace(spec.dataset, train_data_sources=[exchanged], val_data_sources=exchanged)
    other = dataclasses.replace(spec, dataset=data)
    with pytest.raises(CheckpointError, match=r"train\.pretrained_model_path, which copies class rows by name"):
        fit(dataclasses.replace(other, train=dataclasses.replace(other.train, num_epochs=2)))
    latest = tmp_path / "train" / "rtdetr_model_latest.pth"
    train = dataclasses.replace(other.train, pretrained_model_path=str(latest), results_dir=str(tmp_path / "second"))
    second = module_of(dataclasses.replace(other, train=train))
    second.load_initial_weights()
    first = module_of(spec)
    first.load_state_dict(torch.load(latest, weights_only=True)["state_dict"])
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before, after = (module.eval()(images).logits for module in (first, second))
    torch.testing.assert_close(after, before[..., [0, 2, 1]])


def test_resuming_from_a_file_without_names_warns_about_positions(make_spec, tmp_path, caplog):
    spec = make_spec(train__checkpoint_interval=1)
    fit(spec)
    latest = (tmp_path / "train" / "rtdetr_model_latest.pth").resolve()
    payload = torch.load(latest, weights_only=True)
    payload["rtdetr_tool"]["classes"] = []
    torch.save(payload, latest)
    fit(dataclasses.replace(spec, train=dataclasses.replace(spec.train, num_epochs=2)))
    assert "has no class names; using its class rows by position" in caplog.text
    assert "red" in caplog.text
