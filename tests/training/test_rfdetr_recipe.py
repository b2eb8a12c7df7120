"""RF-DETR trains with the defaults of Roboflow's package unless the spec says otherwise."""

from __future__ import annotations

import argparse
import logging

import numpy as np
import pytest
import torch

from rtdetr_tool.checkpoints.spec_merge import complete_spec
from rtdetr_tool.data.transforms import JITTER_CROP, JITTER_SIDES, TrainTransform, draw_scale_jitter
from rtdetr_tool.data.window import Window
from rtdetr_tool.families.rfdetr.recipe import RECIPE
from rtdetr_tool.spec import LoadedSpec, ModelSpec, read_spec, spec_from_dict, spec_to_dict
from rtdetr_tool.spec.recipe import recipe_line
from rtdetr_tool.training.devices import resolve_precision
from rtdetr_tool.training.fit import fit
from rtdetr_tool.training.optim import parameter_groups

RFDETR = "model.arch=rfdetr"


def value_of(spec, field):
    data = spec_to_dict(spec)
    for part in field.split("."):
        data = data[part]
    return data


# Field of the recipe -> field of TrainConfig; the others are compared in their own tests.
OF_TRAIN_CONFIG = {
    "train.num_epochs": "epochs",
    "train.optim.lr": "lr",
    "train.optim.lr_backbone": "lr_encoder",
    "train.optim.lr_layer_decay": "lr_vit_layer_decay",
    "train.optim.lr_component_decay": "lr_component_decay",
    "train.optim.weight_decay": "weight_decay",
    "train.clip_grad_norm": "clip_max_norm",
    "train.enable_ema": "use_ema",
    "train.ema.decay": "ema_decay",
    "train.ema.tau": "ema_tau",
    "train.precision": "amp_dtype",
    "train.sync_bn": "sync_bn",
    "dataset.workers": "num_workers",
    "evaluate.max_dets": "eval_max_dets",
    "wandb.enable": "wandb",
}


def test_the_recipe_has_the_defaults_of_the_package():
    config = pytest.importorskip("rfdetr.config", reason="requires the package rfdetr")
    for field, name in OF_TRAIN_CONFIG.items():
        assert RECIPE[field] == config.TrainConfig.model_fields[name].default, field
    assert RECIPE["train.activation_checkpoint"] == config.ModelConfig.model_fields["gradient_checkpointing"].default
    assert config.TrainConfig.model_fields["warmup_epochs"].default == read_spec(None).spec.train.optim.warmup_epochs


def test_a_spec_of_rfdetr_has_the_recipe_and_one_of_rtdetr_does_not():
    spec, other = read_spec(None, [RFDETR]).spec, read_spec(None).spec
    for field, value in RECIPE.items():
        assert value_of(spec, field) == value, field
    changed = {field for field, value in RECIPE.items() if value_of(other, field) != value}
    assert {"train.optim.lr_backbone", "train.enable_ema", "dataset.augmentation.zoom_out_prob"} <= changed


@pytest.mark.parametrize("field", RECIPE)
def test_what_the_user_says_wins_over_the_recipe(field):
    value = value_of(read_spec(None).spec, field)  # the default of the other family
    given = "null" if value is None else value
    assert value_of(read_spec(None, [RFDETR, f"{field}={given}"]).spec, field) == value


def test_the_recipe_survives_a_round_trip_and_a_checkpoint():
    spec = read_spec(None, [RFDETR, "train.num_epochs=7"]).spec
    again = spec_from_dict(spec_to_dict(spec))
    assert again == spec
    meta = {"spec": {"model": spec_to_dict(spec)["model"]}}
    given = {"train": {"optim": {"lr": 3e-4}}}
    completed = complete_spec(LoadedSpec(spec_from_dict(given), given), meta)
    assert (completed.evaluate.max_dets, completed.train.optim.lr) == (500, 3e-4)
    assert completed.train.optim.lr_backbone == 1.5e-4


def test_the_start_of_a_run_names_the_recipe_and_its_changes(make_spec, caplog):
    line = recipe_line(read_spec(None, [RFDETR, "train.num_epochs=7"]).spec)
    assert "RF-DETR" in line and line.endswith("with train.num_epochs 7 instead of 100")
    with caplog.at_level(logging.INFO, "rtdetr_tool"):
        fit(make_spec(train__optim__lr=3e-4, train__is_dry_run=True))
    lines = [record.getMessage() for record in caplog.records if "recipe" in record.getMessage()]
    assert len(lines) == 1 and "RT-DETR" in lines[0] and "train.optim.lr 0.0003 instead of 0.0001" in lines[0]


def test_images_are_loaded_at_the_largest_size_of_multi_scale_training():
    def sizes(*overrides):
        augmentation = read_spec(None, [RFDETR, *overrides]).spec.dataset.augmentation
        return augmentation.train_spatial_size, augmentation.eval_spatial_size, augmentation.multi_scales

    assert sizes() == ([544, 544], [384, 384], list(range(224, 545, 32)))
    assert sizes("dataset.augmentation.multi_scales=[]") == ([384, 384], [384, 384], [])
    fewer = sizes("model.rfdetr.expanded_scales=false")
    assert fewer == ([512, 512], [384, 384], list(range(288, 513, 32)))


def test_fewer_scales_are_those_of_the_package(reference):
    coco = reference("datasets.coco")
    spec = read_spec(None, [RFDETR, "model.rfdetr.expanded_scales=false"]).spec
    assert spec.dataset.augmentation.multi_scales == coco.compute_multi_scale_scales(384, False, 16, 2)


def test_groups_have_the_rates_and_weight_decay_of_the_package(reference):
    get_param_dict = reference("training.param_groups").get_param_dict
    from rtdetr_tool.families.rfdetr.names import from_rfdetr
    from tests.parity.rfdetr_pair import build_ours, build_theirs

    few = {"num_queries": 4, "group_detr": 2}
    original, detector = build_theirs("nano", **few), build_ours("nano", **few)
    optim = read_spec(None, [RFDETR]).spec.train.optim
    args = argparse.Namespace(
        lr=1e-4, lr_encoder=1.5e-4, lr_vit_layer_decay=0.8, lr_component_decay=0.7, weight_decay=1e-4,
        out_feature_indexes=[3, 6, 9, 12],
    )  # fmt: skip
    settings = {
        id(p): (group["lr"], group.get("weight_decay", args.weight_decay))
        for group in get_param_dict(args, original) for p in group["params"]
    }  # fmt: skip
    expected = from_rfdetr(
        {name: torch.tensor(settings[id(p)]) for name, p in original.named_parameters() if id(p) in settings}
    )
    groups = parameter_groups(
        detector, lr=optim.lr, lr_backbone=optim.lr_backbone, weight_decay=optim.weight_decay,
        lr_layer_decay=optim.lr_layer_decay, lr_component_decay=optim.lr_component_decay,
        decay_vectors=optim.decay_vectors, linear_proj_names=ModelSpec().linear_proj_names,
    )  # fmt: skip
    names = {id(p): name for name, p in detector.named_parameters()}
    actual = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(actual) > 250 and set(actual) <= set(expected)
    for name, pair in actual.items():
        assert pair == pytest.approx(expected[name].tolist(), rel=1e-5), name


def test_precision_auto_is_fp32_without_a_gpu():
    assert resolve_precision(read_spec(None, [RFDETR, "train.accelerator=cpu"]).spec.train) == "fp32"


@pytest.mark.parametrize(("width", "height"), [(640, 480), (300, 900), (50, 40)])
def test_scale_jitter_draws_a_square_of_the_image(width, height):
    rng, window = np.random.default_rng(0), Window(0, 0, width, height)
    shorter, shares = min(width, height), []
    for _ in range(300):
        square = draw_scale_jitter(rng, window)
        assert square.width == square.height <= shorter
        assert square.left >= 0 and square.right <= width and square.top >= 0 and square.bottom <= height
        shares.append(square.width / shorter)
    assert min(shares) >= JITTER_CROP[0] / JITTER_SIDES[-1] - 0.03 and max(shares) > 0.97


def test_without_augmentation_an_image_is_only_resized():
    transform = TrainTransform((32, 32), 0.0, 0.0, zoom_out_prob=0.0, flip_prob=0.0)
    image = torch.arange(3 * 32 * 32).reshape(3, 32, 32).remainder(251).to(torch.uint8)
    boxes, labels = torch.tensor([[4.0, 8.0, 12.0, 24.0]]), torch.tensor([1])
    for seed in range(5):
        pixels, result, _ = transform(image, boxes, labels, np.random.default_rng(seed))
        assert torch.equal(pixels, image) and result.tolist() == [[0.25, 0.5, 0.25, 0.5]]
