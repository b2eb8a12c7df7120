"""Training fields that TAO does not have, for both families: accumulation, layer decay, cosine, EMA with tau, ...

RF-DETR's formulas are compared with its package (rfdetr 1.11) if it is installed.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from timm.layers import DropPath
from torch import nn

from rtdetr_tool.catalog import ENCODERS, RFDETR_VARIANTS, Encoder
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.errors import SpecError, UserError
from rtdetr_tool.families.rfdetr.resolved import default_sizes
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.models.build import build_backbone, build_detector
from rtdetr_tool.spec import ModelSpec, read_spec
from rtdetr_tool.training import auto_batch_size
from rtdetr_tool.training.callbacks.drop_path_schedule import DropPathSchedule
from rtdetr_tool.training.callbacks.early_stopping import EarlyStopping
from rtdetr_tool.training.callbacks.ema import ExponentialMovingAverage
from rtdetr_tool.training.datamodule import DetectionDataModule
from rtdetr_tool.training.fit import fit
from rtdetr_tool.training.module import DetectorModule
from rtdetr_tool.training.optim import parameter_groups
from rtdetr_tool.training.schedule import StagedSchedule

FAMILIES = {
    "rtdetr": {},
    "rfdetr": {
        "model__arch": "rfdetr",
        "model__rfdetr": RfdetrSpec(
            out_feature_indexes=[1], resolution=64, hidden_dim=32, sa_nheads=2, ca_nheads=4, num_queries=10,
            group_detr=2, dec_layers=2, dim_feedforward=32,
        ),
    },
}  # fmt: skip
TINY_VIT = Encoder("dinov2_windowed_small", 32, 2, 2, 0, "", "")
both_families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def tiny_vit(monkeypatch):
    monkeypatch.setitem(ENCODERS, TINY_VIT.name, TINY_VIT)


class Steps(pl.Callback):
    """The rate of each optimizer step."""

    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


@both_families
def test_both_families_train_validate_and_save(family, tiny_vit, make_spec):
    result = fit(make_spec(**FAMILIES[family], train__enable_ema=True))
    term = "train/loss_vfl" if family == "rtdetr" else "train/loss_ce"
    assert result.metrics[term] > 0 and result.metrics["val/loss"] > 0
    assert {"val/mAP_50_95", "val/F1", "val/precision", "val/recall", "val/threshold"} <= set(result.metrics)
    assert load_checkpoint(result.best_path)["rtdetr_tool"]["spec"]["model"]["arch"] == family


@both_families
def test_accumulated_batches_have_the_same_size_and_different_noise(family, tiny_vit, make_spec, tmp_path):
    """Eight images in batches of two: four steps, or one of four batches."""
    sizes, draws = [], []

    class Watch(Steps):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            sizes.append(tuple(pl_module.prepare_images(batch, multi_scale=True).shape[-2:]))

        def on_before_backward(self, trainer, pl_module, loss):
            draws.append(torch.rand(1).item())

    def steps(count):
        watch = Watch()
        spec = make_spec(
            **FAMILIES[family], dataset__batch_size=2, train__grad_accum_steps=count,
            dataset__augmentation__multi_scales=[64, 96, 128], train__results_dir=str(tmp_path / str(count)),
        )  # fmt: skip
        fit(spec, callbacks=[watch], limit_val_batches=0)
        return len(watch.rates)

    assert steps(4) == 1
    assert len(set(sizes[:3])) == 1 and len(set(draws)) == 4
    assert steps(1) == 4


def test_parameter_groups_of_rfdetr_have_the_rates_of_its_package(reference):
    groups_of = reference("training.param_groups").get_param_dict
    from rtdetr_tool.families.rfdetr.names import from_rfdetr
    from tests.parity.rfdetr_pair import build_ours, build_theirs

    few = {"num_queries": 4, "group_detr": 2}
    original, detector = build_theirs("nano", **few), build_ours("nano", **few)
    args = argparse.Namespace(
        lr=1e-4, lr_encoder=1.5e-4, lr_vit_layer_decay=0.8, lr_component_decay=0.7, weight_decay=1e-4,
        out_feature_indexes=[3, 6, 9, 12],
    )  # fmt: skip
    rate_of = {id(p): group["lr"] for group in groups_of(args, original) for p in group["params"]}
    expected = from_rfdetr(
        {name: torch.tensor(rate_of[id(p)]) for name, p in original.named_parameters() if id(p) in rate_of}
    )
    groups = parameter_groups(
        detector, lr=1e-4, lr_backbone=1.5e-4, weight_decay=1e-4, lr_layer_decay=0.8, lr_component_decay=0.7
    )
    names = {id(p): name for name, p in detector.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert len(rates) > 250 and set(rates) <= set(expected)
    for name, rate in rates.items():
        assert rate == pytest.approx(expected[name].item(), rel=1e-5), name
    assert rates["backbone.cls_token"] == pytest.approx(3.23e-6, rel=1e-2)  # as in the published table
    assert rates["backbone.blocks.11.fc1.weight"] == pytest.approx(4.70e-5, rel=1e-2)


@pytest.mark.parametrize(
    ("backbone", "samples"),
    [
        ("resnet_18d", {"conv1.0.weight": 0, "layer1.0.conv1.weight": 1, "layer4.1.bn2.weight": 8}),
        ("convnext_tiny", {"stem.0.weight": 0, "stages.1.downsample.1.weight": 4, "stages.1.blocks.0.gamma": 4,
                           "stages.3.blocks.2.gamma": 18, "conv_1024.weight": 19}),
        ("fan_tiny", {"patch_embed.backbone.stem.0.weight": 0, "patch_embed.proj.weight": 7, "blocks.0.gamma1": 7,
                      "out_norm3.weight": 17}),
        ("efficientvit_b0", {"stem.in_conv.conv.weight": 0, "norm1.weight": 11}),
        ("timm/efficientnet_lite0", {"extractor.conv_stem.weight": 0, "extractor.blocks.6.0.conv_dw.weight": 16}),
    ],
)  # fmt: skip
def test_layers_are_numbered_from_the_stem(backbone, samples):
    numbers = build_backbone(ModelSpec(backbone=backbone)).layer_numbers()
    assert {name: numbers[name] for name in samples} == samples
    assert set(numbers.values()) == set(range(max(numbers.values()) + 1))


def test_each_layer_of_a_backbone_is_slower_than_the_next_by_the_factor(make_spec):
    model = ModelSpec(backbone="resnet_18d", hidden_dim=32, nheads=4, feat_channels=[32, 32, 32], dec_layers=1)
    detector = build_detector(model, 3)
    groups = parameter_groups(
        detector, lr=1e-3, lr_backbone=1e-4, weight_decay=0.1, lr_layer_decay=0.5, lr_component_decay=0.5
    )
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["backbone_008"] == pytest.approx(1e-4 / 4) and rates["backbone_000"] == pytest.approx(1e-4 / 4 / 2**8)
    assert rates["decoder"] == pytest.approx(5e-4) and rates["main"] == pytest.approx(1e-3)


@pytest.mark.parametrize(("preset", "kind"), [("cosine", "Cosine"), ("step", "MultiStep")])
def test_schedules_have_the_values_of_rfdetr(preset, kind, reference):
    """Except for the first warm-up step, which has a factor of 0 there and of 1/8 here."""
    module = reference("training.module_model")
    config = argparse.Namespace(lr_scheduler=preset, lr_scheduler_kwargs={"min_factor": 0.1, "lr_drop": 3})
    their_optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    expect = module._build_managed_scheduler(their_optimizer, config, 50, 10, 8).lr_lambdas[0]
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    actual = StagedSchedule(
        optimizer, kind=kind, milestones=[3], decay=0.1, warmup_steps=8, total_steps=50, min_factor=0.1
    )
    for step in range(50):
        actual.start_epoch(step // 10)
        expected = (step + 1) / 8 if step < 8 else expect(step)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected), step
        optimizer.step()
        actual.step()


@pytest.mark.parametrize("tau", [100, 0])
def test_the_decay_of_ema_grows_as_in_rfdetr(tau, reference):
    original = reference("training.callbacks.ema").RFDETREMACallback(decay=0.993, tau=tau)
    actual = ExponentialMovingAverage(decay=0.993, tau=tau)
    for update in (1, 2, 50, 1000):
        assert actual.decay_at(update) == pytest.approx(original._effective_decay(update - 1))


@pytest.mark.parametrize("variant", RFDETR_VARIANTS)
def test_multi_scale_sizes_are_those_of_rfdetr(variant, reference):
    scales = reference("datasets.coco").compute_multi_scale_scales
    row = RFDETR_VARIANTS[variant]
    expected = scales(row.resolution, True, row.patch_size, row.num_windows)
    assert default_sizes(RfdetrSpec(variant=variant))["multi_scales"] == expected


@pytest.mark.parametrize("kind", ["early", "late", "early_linear"])
def test_the_schedule_of_drop_path_is_that_of_rfdetr(kind, reference):
    schedule = reference("training.drop_schedule").drop_scheduler
    mode, _, shape = kind.partition("_")
    expected = schedule(0.2, 5, 4, 3, mode, shape or "constant")
    actual = DropPathSchedule(kind, epochs=3)
    assert [0.2 * actual.factor(step, 4) for step in range(20)] == pytest.approx(expected.tolist())


def test_early_stopping_ends_and_saves_a_run(make_spec):
    spec = make_spec(
        train__num_epochs=9, train__checkpoint_interval=9, train__early_stopping__enabled=True,
        train__early_stopping__patience=2, train__early_stopping__min_delta=1.0,
    )  # fmt: skip
    result = fit(spec)
    assert result.epochs in (2, 3) and result.latest_path.name == "model_epoch_002.pth"


def test_patience_survives_resuming():
    first, second = EarlyStopping(patience=3), EarlyStopping(patience=3)
    first.best, first.waited = 0.5, 2
    second.load_state_dict(first.state_dict())
    assert (second.best, second.waited) == (0.5, 2)


@both_families
def test_averaged_and_trained_weights_are_both_validated(family, tiny_vit, make_spec):
    changes = {**FAMILIES[family], "train__enable_ema": True, "train__optim__lr": 1e-2}
    result = fit(make_spec(**changes, train__ema__validate_both=True, train__ema__decay=1.0, train__ema__tau=0.0))
    alone = fit(make_spec(**changes, train__ema__validate_original_weights=True, train__ema__decay=1.0,
                          train__results_dir=str(Path(result.best_path).parent / "alone")))  # fmt: skip
    assert result.metrics["val/mAP_50"] == pytest.approx(alone.metrics["val/mAP_50"])
    assert result.metrics["val/F1"] == pytest.approx(alone.metrics["val/F1"])


def test_validation_can_skip_losses_and_log_ap_per_class(make_spec):
    result = fit(make_spec(train__compute_val_loss=False, train__log_per_class_metrics=True))
    assert "val/loss" not in result.metrics
    assert {"val/AP/red", "val/AP/green"} <= set(result.metrics)


def test_the_first_batches_are_saved_with_their_boxes(make_spec):
    spec = make_spec(train__save_dataset_grids=True)
    fit(spec)
    folder = Path(spec.train.results_dir, "dataset_grids")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["train_batch0_grid.jpg", "train_batch1_grid.jpg", "val_batch0_grid.jpg"]
    grid = np.asarray(Image.open(folder / "val_batch0_grid.jpg"))
    assert grid.shape == (72, 208, 3)  # three images of 64 in a row, four pixels between
    assert json.loads(Path(spec.dataset.val_data_sources["json_file"]).read_text())["images"][0]["width"] == 64
    assert math.isfinite(grid.std()) and grid.std() > 10


@both_families
def test_the_best_checkpoint_has_the_better_kind_of_weights(family, tiny_vit, make_spec):
    """An average that never moves keeps the random weights, so the trained weights are at least as good."""
    spec = make_spec(
        **FAMILIES[family], train__enable_ema=True, train__ema__decay=1.0, train__ema__tau=0.0,
        train__ema__validate_both=True,
    )  # fmt: skip
    fit(spec)
    folder = Path(spec.train.results_dir)
    kinds = {
        name: load_checkpoint(folder / f"rtdetr_model_{name}.pth")["rtdetr_tool"]["weights"]
        for name in ("best", "best_regular", "best_ema")
    }
    assert kinds["best_regular"] == "raw" and kinds["best_ema"] == "ema"
    scores = load_checkpoint(folder / "rtdetr_model_best.pth")["rtdetr_tool"]["metrics"]
    assert kinds["best"] == ("ema" if scores["val/ema_mAP_50_95"] > scores["val/mAP_50_95"] else "raw")


@pytest.mark.parametrize(("limit", "batches"), [(100, (8, 1)), (4, (4, 2)), (3, (2, 4))])
def test_auto_uses_the_largest_batch_that_fits_and_accumulates(limit, batches, make_spec, monkeypatch):
    tried = []

    def fits(module, count, device):
        tried.append(module.compute_losses(auto_batch_size.trial_batch(module, count, device))["loss"].item())
        return count <= limit

    monkeypatch.setattr(auto_batch_size, "_fits_cpu", fits)
    spec = make_spec(dataset__batch_size=0, train__effective_batch_size=8)
    result = fit(spec, limit_val_batches=0)
    stored = load_checkpoint(result.latest_path)["rtdetr_tool"]["spec"]
    assert (stored["dataset"]["batch_size"], stored["train"]["grad_accum_steps"]) == batches
    assert len(tried) >= 2


def test_auto_on_a_cpu_estimates_memory_without_changing_the_module(make_spec, monkeypatch):
    sizes = {"dataset__batch_size": 0, "dataset__augmentation__multi_scales": [32, 96]}
    spec = make_spec(model__dn_number=100, **sizes)  # as many queries as a trial has objects
    module = DetectorModule(spec, DetectionDataModule(spec).class_map)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    monkeypatch.setattr(auto_batch_size, "free_memory", lambda: 64 * 2**30)  # independent of the machine
    roomy = auto_batch_size.resolve_batch_size(spec, module)
    assert (roomy.dataset.batch_size, roomy.train.grad_accum_steps) == (16, 1)
    weights = sum(tensor.nbytes for tensor in before.values())
    monkeypatch.setattr(auto_batch_size, "free_memory", lambda: 5 * weights + 200_000_000)
    tight = auto_batch_size.resolve_batch_size(spec, module)
    assert tight.dataset.batch_size * tight.train.grad_accum_steps >= 16 > tight.dataset.batch_size
    assert module.spec is spec
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    monkeypatch.setattr(auto_batch_size, "free_memory", lambda: 0)
    with pytest.raises(UserError, match="not even one image fits"):
        auto_batch_size.resolve_batch_size(spec, module)


def test_auto_is_only_for_training():
    assert read_spec(None, ["dataset.batch_size=auto"]).spec.dataset.batch_size == auto_batch_size.AUTO
    with pytest.raises(SpecError, match=r"dataset\.batch_size: .*an integer of at least 1 or auto"):
        read_spec(None, ["dataset.batch_size=many"])
    with pytest.raises(SpecError, match=r"evaluate\.batch_size: "):
        read_spec(None, ["dataset.batch_size=auto"], command="evaluate")


def test_notes_are_in_checkpoint_and_graph(make_spec):
    from rtdetr_tool.formats.opening import OpenedDetector
    from rtdetr_tool.workflows.export import notes_of

    path = fit(make_spec(train__notes="night shift, lens 3")).latest_path
    meta = load_checkpoint(path)["rtdetr_tool"]
    assert meta["spec"]["train"]["notes"] == "night shift, lens 3"
    assert notes_of(OpenedDetector(None, meta, None, None)) == "night shift, lens 3"
    assert notes_of(OpenedDetector(None, {}, None, None)) is None


@pytest.mark.parametrize("backbone", ["resnet_18d", "convnextv2_nano", "fan_tiny", "timm/regnety_002"])
def test_drop_path_reaches_the_blocks_of_a_backbone(backbone):
    def rates(drop_path):
        built = build_backbone(ModelSpec(backbone=backbone, drop_path=drop_path))
        return [module.drop_prob for module in built.modules() if isinstance(module, DropPath)]

    assert max(rates(0.2)) == pytest.approx(0.2)
    assert max(rates(0.0), default=0.0) == 0.0


def test_drop_path_with_a_backbone_without_blocks_is_refused():
    with pytest.raises(UserError, match=r"model\.drop_path is not supported with model\.backbone=efficientvit_b0"):
        build_backbone(ModelSpec(backbone="efficientvit_b0", drop_path=0.1))
