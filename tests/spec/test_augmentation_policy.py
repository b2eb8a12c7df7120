"""`dataset.augmentation.policy` fills the probabilities that the spec does not set."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec import AugmentationSpec, read_spec, spec_from_dict, spec_to_dict
from rtdetr_tool.spec.augmentation_policy import OFF, POLICIES, SCHEDULE_FIELDS


def augmentation(epochs=10, model=None, **fields):
    data = {"results_dir": "unused", "dataset": {"augmentation": fields}, "model": model or {}}
    return spec_from_dict({**data, "train": {"num_epochs": epochs}} if epochs else data).dataset.augmentation


def steps(section) -> dict:
    return {name: value for name, value in asdict(section).items() if name in OFF}


def test_rtdetr_is_the_default_and_rfdetr_the_recipe_of_that_family():
    assert steps(augmentation()) == steps(augmentation(policy="rtdetr")) == steps(AugmentationSpec())
    recipe = augmentation(epochs=None, model={"arch": "rfdetr"})
    assert steps(recipe) == steps(augmentation(policy="rfdetr"))


def test_a_policy_precedes_the_recipe_and_set_fields_precede_the_policy():
    section = augmentation(epochs=None, model={"arch": "rfdetr"}, policy="light", flip_prob=0.2, mosaic_prob=0.3)
    assert steps(section) == {**OFF, "distortion_prob": 0.5, "flip_prob": 0.2, "mosaic_prob": 0.3}


def test_none_switches_every_step_off_and_every_policy_sets_every_step():
    assert steps(augmentation(policy="none")) == dict.fromkeys(OFF, 0.0)
    probabilities = {name for name in asdict(AugmentationSpec()) if name.endswith("_prob")}
    assert all(set(values) == set(OFF) == probabilities for values in POLICIES.values())


# The epochs of the official configurations of DEIM (commit of 2025): policy.epoch and no_aug_epoch.
@pytest.mark.parametrize(("epochs", "expected"), [(58, (4, 29, 8)), (102, (4, 49, 12)), (132, (4, 64, 12)),
                                                  (160, (4, 78, 12)), (10, (1, 5, 1)), (1, (0, 0, 0))])  # fmt: skip
def test_deim_starts_and_stops_as_in_its_configurations(epochs, expected):
    section = augmentation(epochs, policy="deim")
    assert tuple(getattr(section, name) for name in SCHEDULE_FIELDS) == expected
    assert (section.mosaic_prob, section.mixup_prob, section.distortion_prob) == (0.5, 0.5, 0.5)


def test_the_schedule_follows_the_epochs_of_the_recipe():
    assert augmentation(epochs=None, model={"arch": "rfdetr"}, policy="strong").no_aug_epochs == 12  # of 100
    assert augmentation(epochs=None, policy="strong").no_aug_epochs == 1  # of 10
    assert augmentation(policy="strong", no_aug_epochs=0).no_aug_epochs == 0


def test_a_resolved_spec_resolves_to_itself():
    spec = spec_from_dict({"results_dir": "x", "dataset": {"augmentation": {"policy": "deim"}}})
    assert spec_from_dict(spec_to_dict(spec)) == spec


def test_the_table_in_the_docs_is_that_of_the_policies():
    page = (Path(__file__).parents[2] / "docs" / "augmentation.md").read_text()
    header, *rows = re.findall(r"^\| (`.+|field.+) \|$", page[page.index("## Policies") : page.index("## Steps")], re.M)
    names = [name.strip("` ") for name in header.split("|")[1:]]
    assert sorted(names) == sorted(POLICIES)
    table = {cells[0].strip("` "): [float(cell) for cell in cells[1:]] for cells in (row.split("|") for row in rows)}
    assert table == {field: [POLICIES[name][field] for name in names] for field in OFF}


def test_an_invalid_policy_and_section_are_reported():
    with pytest.raises(SpecError, match=r"augmentation\.policy: .*expected.*aerial"):
        augmentation(policy="wild")
    with pytest.raises(SpecError, match=r"dataset\.augmentation"):
        spec_from_dict({"results_dir": "x", "dataset": {"augmentation": 3}})
    with pytest.raises(SpecError, match=r"num_epochs"):
        augmentation(epochs="many", policy="deim")


def test_a_schedule_longer_than_the_run_is_reported():
    with pytest.raises(SpecError, match=r"start_epoch.*no_aug_epochs: together 11 epochs; expected at most .*10"):
        augmentation(start_epoch=4, no_aug_epochs=7)


def test_copy_paste_is_refused_for_keypoints():
    model = {"arch": "rfdetr", "rfdetr": {"variant": "keypoint_preview"}}
    with pytest.raises(SpecError, match=r"copy_paste_prob: 0\.5 is invalid for a model of keypoints"):
        augmentation(model=model, copy_paste_prob=0.5)


def test_a_policy_on_the_command_line():
    loaded = read_spec(None, ["dataset.augmentation.policy=aerial", "dataset.augmentation.rotation_degrees=5"])
    section = loaded.spec.dataset.augmentation
    assert (section.rotate90_prob, section.vertical_flip_prob, section.rotation_degrees) == (0.75, 0.5, 5)
    assert loaded.explicit == {"dataset": {"augmentation": {"policy": "aerial", "rotation_degrees": 5}}}
