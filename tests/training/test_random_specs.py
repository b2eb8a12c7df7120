"""Any spec with valid fields either passes a dry run or is refused with a clear message."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from random_specs import FORMATS, random_distillation, random_format, random_spec, with_random_backbone

from rtdetr_tool.checkpoints.io import save_detector
from rtdetr_tool.checkpoints.metadata import build_metadata
from rtdetr_tool.commands import distill
from rtdetr_tool.errors import SpecError, UserError
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.spec import LoadedSpec, spec_from_dict, spec_to_dict
from rtdetr_tool.training.batch_norm_check import _norm_without_variance
from rtdetr_tool.training.fit import fit
from rtdetr_tool.training.module import DetectorModule
from scripts.convert_dataset import as_boxes, write_format


@pytest.fixture(scope="module")
def formats(sources, tmp_path_factory):
    """Format -> the `dataset` fields for the same images."""
    root, images = tmp_path_factory.mktemp("formats"), {name: Path(sources[name]["image_dir"]) for name in sources}
    splits = {name: as_boxes(json.loads(Path(sources[name]["json_file"]).read_text())) for name in sources}
    files = {"train_data_sources": [sources["train"]], "val_data_sources": sources["val"]}
    folders = {kind: str(write_format(kind, root / kind, splits, images)) for kind in FORMATS if kind != "coco files"}
    return {"coco files": files, **{kind: {"dataset_dir": folder} for kind, folder in folders.items()}}


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    """Untrained weights of a small RT-DETR for both classes, as a run saves them."""
    model = {
        "backbone": "timm/test_resnet", "hidden_dim": 16, "nheads": 2, "feat_channels": [16, 16, 16],
        "dim_feedforward": 16, "num_queries": 8, "num_select": 8, "dec_layers": 1,
    }  # fmt: skip
    sizes = {"eval_spatial_size": [64, 64], "preserve_aspect_ratio": False}
    spec = spec_from_dict({"model": model, "dataset": {"num_classes": 3, "augmentation": sizes}})
    classes = [{"index": 1, "id": 1, "name": "red"}, {"index": 2, "id": 2, "name": "green"}]
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    meta = build_metadata("test", spec_to_dict(spec), classes)
    save_detector(build_detector(spec.model, 3).state_dict(), meta, path)
    return str(path)


def run(data: dict) -> None:
    if "distill" not in data:
        fit(spec_from_dict(data, "train"))
        return
    distill.run(LoadedSpec(spec_from_dict(data, "distill"), data))


def outcome(seed: int, formats, teacher_file) -> str:
    """`done` or `refused`. Any other exception is a failure."""
    data = with_random_backbone(random_spec(seed), seed)
    data["dataset"] |= {**formats[random_format(seed)], "num_classes": 3}
    data |= {"results_dir": "/nonexistent", "wandb": {"enable": False}}
    data = random_distillation(data, seed, teacher_file) or data
    try:
        run(data)
    except UserError as error:
        assert str(error)
        return "refused"
    except Exception as error:
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\n{json.dumps(data)}") from error
    return "done"


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def test_a_few_random_specs_run_or_are_refused(formats, teacher_file):
    outcomes = [outcome(seed, formats, teacher_file) for seed in range(12)]
    assert outcomes.count("done") >= 6


@pytest.mark.parametrize(("size", "scales"), [([32, 32], []), ([64, 64], [64, 32])])
def test_one_value_per_channel_is_refused_before_training(make_spec, size, scales):
    sizes = {"dataset__augmentation__train_spatial_size": size, "dataset__augmentation__multi_scales": scales}
    with pytest.raises(UserError, match=r"1 image at 32 x 32 .*batch norm .*dataset\.batch_size is 1"):
        fit(make_spec(**sizes, dataset__batch_size=1, train__results_dir="/nonexistent"))


def test_two_images_or_a_larger_size_can_be_trained(make_spec):
    for batch_size, size in ((2, [32, 32]), (1, [32, 64])):
        changes = {"dataset__augmentation__train_spatial_size": size, "dataset__batch_size": batch_size}
        assert fit(make_spec(**changes, train__is_dry_run=True)).dry_run


def test_the_check_does_not_change_statistics(make_spec):
    module = DetectorModule(make_spec(), ClassMap.from_categories({1: "a", 2: "b"}, 3, "auto", False))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert _norm_without_variance(module.detector, 32, 32) is not None
    assert _norm_without_variance(module.detector, 64, 64) is None
    assert all(tensor.equal(before[name]) for name, tensor in module.state_dict().items())


def test_adamw_with_a_beta_of_one_is_refused():
    with pytest.raises(SpecError, match=r"train\.optim\.momentum"):
        spec_from_dict({"train": {"optim": {"momentum": 1.0}}})


@pytest.mark.slow
def test_five_hundred_random_specs_run_or_are_refused(formats, teacher_file):
    failures, outcomes = [], []
    for seed in range(500):
        try:
            outcomes.append(outcome(seed, formats, teacher_file))
            print(seed, random_format(seed), outcomes[-1], flush=True)
        except AssertionError as error:
            failures.append(str(error))
    assert failures == []
    assert outcomes.count("done") >= 250
