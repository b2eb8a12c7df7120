"""Any spec with valid fields either passes a dry run or is refused with a clear message."""

from __future__ import annotations

import json
import logging

import pytest
from random_specs import random_spec

from rtdetr_tool.errors import SpecError, UserError
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.training.batch_norm_check import _norm_without_variance
from rtdetr_tool.training.fit import fit
from rtdetr_tool.training.module import DetectorModule


def outcome(seed: int, sources) -> str:
    """`done` or `refused`. Any other exception is a failure."""
    data = random_spec(seed)
    data["dataset"] |= {"train_data_sources": [sources["train"]], "val_data_sources": sources["val"], "num_classes": 3}
    data |= {"results_dir": "/nonexistent", "wandb": {"enable": False}}
    try:
        fit(spec_from_dict(data, "train"))
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


def test_a_few_random_specs_run_or_are_refused(sources):
    outcomes = [outcome(seed, sources) for seed in range(12)]
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
def test_five_hundred_random_specs_run_or_are_refused(sources):
    failures, outcomes = [], []
    for seed in range(500):
        try:
            outcomes.append(outcome(seed, sources))
        except AssertionError as error:
            failures.append(str(error))
    assert failures == []
    assert outcomes.count("done") >= 300
