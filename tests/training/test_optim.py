"""Parameter groups, optimizers and learning-rate schedules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rtdetr_tool.errors import SpecError
from rtdetr_tool.models.backbones.base import ImageBackbone
from rtdetr_tool.spec.train import OptimSpec, TrainSpec
from rtdetr_tool.training.adamw import GroupedAdamW
from rtdetr_tool.training.optim import build_optimizer, parameter_groups
from rtdetr_tool.training.schedule import StagedSchedule, build_schedule


class _Backbone(nn.Sequential, ImageBackbone):
    """A backbone of layers in sequence."""


class _Named(nn.Module):
    """A small module with the names of a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _Backbone(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.encoder = nn.ModuleDict({"input_proj": nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))})
        self.decoder = nn.ModuleDict(
            {
                "enc_output": nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
                "sampling_offsets": nn.Linear(4, 8),
                "backbone_like": nn.Linear(4, 4),
            }
        )


def _groups(model: nn.Module, **changes):
    settings = {"lr": 1e-4, "lr_backbone": 1e-5, "weight_decay": 0.1, "linear_proj_names": ["sampling_offsets"]}
    return {g["name"]: g for g in parameter_groups(model, **{**settings, **changes})}


def test_every_trainable_parameter_is_in_exactly_one_group():
    model = _Named()
    model.decoder["enc_output"].requires_grad_(False)
    seen = [id(p) for group in _groups(model).values() for p in group["params"]]
    assert sorted(seen) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_the_backbone_group_has_the_whole_backbone_and_its_own_rate():
    model = _Named()
    groups = _groups(model)
    grouped = {id(p) for name in ("backbone", "backbone_no_decay") for p in groups[name]["params"]}
    assert grouped == {id(p) for p in model.backbone.parameters()}
    assert {groups[name]["lr"] for name in ("backbone", "backbone_no_decay")} == {1e-5}
    assert {group["lr"] for name, group in groups.items() if name.startswith("main")} == {1e-4}


def test_norms_and_biases_have_no_weight_decay_whatever_their_names():
    model = _Named()
    groups = _groups(model)
    undecayed = {id(p) for group in groups.values() if group["weight_decay"] == 0 for p in group["params"]}
    vectors = [p for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.LayerNorm)) for p in m.parameters()]
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert undecayed == {id(p) for p in [*vectors, *biases]}
    assert {group["weight_decay"] for name, group in groups.items() if not name.endswith("no_decay")} == {0.1}


def test_named_linear_projections_have_the_multiplied_rate():
    model = _Named()
    groups = _groups(model, lr_linear_proj_mult=0.1)
    assert groups["linear_proj"]["lr"] == pytest.approx(1e-5)
    assert [id(p) for p in groups["linear_proj"]["params"]] == [id(model.decoder["sampling_offsets"].weight)]


def test_a_shared_parameter_is_counted_once():
    model = _Named()
    model.decoder["enc_output"][0].weight = model.decoder["backbone_like"].weight
    seen = [id(p) for group in _groups(model).values() for p in group["params"]]
    assert len(seen) == len(set(seen)) == len(list(model.parameters()))


def test_momentum_is_the_first_beta_of_adamw_and_the_momentum_of_sgd():
    groups = list(_groups(_Named()).values())
    assert build_optimizer("AdamW", groups, momentum=0.7).param_groups[0]["betas"] == (0.7, 0.999)
    sgd = build_optimizer("SGD", list(_groups(_Named()).values()), momentum=0.7)
    assert isinstance(sgd, torch.optim.SGD) and sgd.param_groups[0]["momentum"] == 0.7


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_fused_and_plain_optimizers_take_the_same_steps(name):
    models = [_Named() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, fused in zip(models, (True, False), strict=True):
        optimizer = build_optimizer(name, list(_groups(model).values()), momentum=0.9, fused=fused)
        for step in range(3):
            for index, parameter in enumerate(model.parameters()):
                parameter.grad = torch.full_like(parameter, 0.1 * (index + 1) * (step - 1.5))
            optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"fused": True}, {"foreach": True}, {"foreach": False}, {"foreach": True, "amsgrad": True}],
    ids=["fused", "foreach", "loop", "amsgrad"],
)
def test_stepping_all_groups_together_gives_the_bits_and_states_of_torch(options):
    """Learning rates per group that change, a parameter without a gradient, and a step that the guard turns off."""
    results = []
    for kind in (torch.optim.AdamW, GroupedAdamW):
        generator = torch.Generator().manual_seed(0)
        weights = [nn.Parameter(torch.randn(5, 3, generator=generator)) for _ in range(6)]
        rates = ((1e-2, 0.1), (3e-3, 0.0), (1e-3, 0.05))
        groups = [
            {"params": weights[2 * i : 2 * i + 2], "lr": lr, "weight_decay": decay}
            for i, (lr, decay) in enumerate(rates)
        ]
        optimizer = kind(groups, betas=(0.8, 0.99), **options)
        for step in range(5):
            for index, weight in enumerate(weights):
                weight.grad = torch.randn(5, 3, generator=generator) if index != step else None
            if options.get("fused"):
                optimizer.found_inf = torch.tensor(float(step == 2))
            for group in optimizer.param_groups:
                group["lr"] *= 0.9
            optimizer.step()
        results.append((weights, optimizer.state_dict()))
    (expected, expected_state), (actual, state) = results
    assert all(torch.equal(a, b) for a, b in zip(expected, actual, strict=True))
    assert str(state) == str(expected_state) and state["state"][0]["step"] == (3 if options.get("fused") else 4)


def test_freezing_everything_is_refused():
    model = _Named().requires_grad_(False)
    with pytest.raises(SpecError, match="Nothing to train"):
        build_optimizer("AdamW", parameter_groups(model, lr=1, lr_backbone=1, weight_decay=0), momentum=0.9)


def _rates(steps_per_epoch: int, epochs: int, **settings) -> list[list[float]]:
    """The learning rate of each step, by epoch."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = StagedSchedule(optimizer, **settings)
    rates = []
    for epoch in range(epochs):
        schedule.start_epoch(epoch)
        rates.append([])
        for _ in range(steps_per_epoch):
            rates[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    return rates


def test_multistep_decays_at_its_milestones():
    rates = _rates(2, 5, kind="MultiStep", decay=0.1, milestones=[3, 1])
    assert rates == [pytest.approx([value] * 2) for value in (1, 0.1, 0.1, 0.01, 0.01)]


def test_steplr_decays_every_step_size_epochs():
    rates = _rates(2, 5, kind="StepLR", decay=0.5, step_size=2)
    assert rates == [pytest.approx([value] * 2) for value in (1, 1, 0.5, 0.5, 0.25)]


def test_warmup_is_linear_in_steps_across_epochs_and_multiplies_the_decay():
    rates = _rates(3, 3, decay=0.1, milestones=[1], warmup_steps=4)
    assert rates == [pytest.approx([0.25, 0.5, 0.75]), pytest.approx([0.1, 0.1, 0.1]), pytest.approx([0.1, 0.1, 0.1])]


def test_flat_cosine_is_constant_then_a_cosine_then_constant_again():
    settings = {"kind": "FlatCosine", "total_steps": 12, "flat_steps": 4, "final_steps": 2, "min_factor": 0.5}
    (rates,) = _rates(12, 1, warmup_steps=2, **settings)
    cosine = [0.75 + 0.25 * math.cos(math.pi * step / 6) for step in range(6)]
    assert rates == pytest.approx([0.25, 1, 1, 1, *cosine, 0.5, 0.5])


def test_the_steps_of_flat_cosine_come_from_its_epochs():
    train = TrainSpec(num_epochs=10, optim=OptimSpec(lr_scheduler="FlatCosine", lr_flat_epochs=4, lr_final_epochs=1.5))
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = build_schedule(train, optimizer, total_steps=200)["scheduler"]
    assert (schedule.flat_steps, schedule.final_steps, schedule.total_steps) == (80, 30, 200)


def test_a_schedule_resumes_with_new_settings():
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    first = StagedSchedule(optimizer, warmup_steps=10)
    for _ in range(4):
        optimizer.step()
        first.step()
    again = torch.optim.SGD([weight], lr=1.0)
    second = StagedSchedule(again, warmup_steps=10, milestones=[0], decay=0.5)
    second.load_state_dict(first.state_dict())
    assert again.param_groups[0]["lr"] == pytest.approx(0.25)


def test_an_unknown_schedule_or_optimizer_is_a_spec_error():
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(SpecError, match="MultiStep, StepLR, Cosine"):
        StagedSchedule(torch.optim.SGD([weight], lr=1.0), kind="Plateau")
    with pytest.raises(SpecError, match="AdamW, SGD or an optimizer of torch"):
        build_optimizer("Lion", [{"params": [weight], "lr": 1.0}], momentum=0.9)
