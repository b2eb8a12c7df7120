"""DistributedDataParallel without a search for unused parameters: every parameter gets a gradient in every step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.classes import ClassEntry, ClassMap
from rtdetr_tool.ops.structures import Batch, Target
from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.training import compilation
from rtdetr_tool.training.distill import DistillModule
from rtdetr_tool.training.module import DetectorModule
from rtdetr_tool.training.trainer import choose_strategy

CLASSES = 3
TINY = {
    "backbone": "timm/test_resnet", "hidden_dim": 32, "nheads": 4, "dim_feedforward": 32, "num_queries": 10,
    "feat_channels": [32, 32, 32], "num_select": 10, "dec_layers": 2, "dn_number": 4,
}  # fmt: skip
NANO = {"arch": "rfdetr", "num_select": 10, "rfdetr": {"variant": "nano", "num_queries": 10, "group_detr": 3}}
SEG = {"arch": "rfdetr", "num_select": 10, "rfdetr": {"variant": "seg_nano", "num_queries": 10, "group_detr": 3}}
FEATURES = {"teacher_module_name": "backbone", "student_module_name": "backbone", "criterion": "L2", "weight": 1.0}
LOGITS = {"teacher_module_name": "pred_logits", "student_module_name": "pred_logits", "criterion": "KL", "weight": 1.0}
CASES: dict[str, dict[str, Any]] = {
    "default": {"model": TINY},
    "recomputed norms": {"model": TINY, "train": {"recompute_norms": True}},
    "distillation that has ended": {"model": TINY, "distill": {"bindings": [FEATURES], "decay_from_epoch": 0}},
}
SLOW: dict[str, dict[str, Any]] = {
    "no auxiliary losses": {"model": {**TINY, "aux_loss": False}},
    "class loss only": {"model": {**TINY, "loss_types": ["vfl"]}},
    "box losses only, no auxiliary losses": {"model": {**TINY, "loss_types": ["boxes"], "aux_loss": False}},
    "no denoising, discrete sampling": {"model": {**TINY, "dn_number": 0, "cross_attn_method": "discrete"}},
    "frozen parts": {"model": {**TINY, "backbone": "resnet_18", "freeze_norm": True}, "train": {"freeze": ["encoder"]}},
    "recomputed backbone": {"model": TINY, "train": {"activation_checkpoint": True}},
    "distillation": {"model": TINY, "distill": {"bindings": [FEATURES, LOGITS]}},
    "RF-DETR": {"model": NANO},
    "RF-DETR without auxiliary losses": {"model": {**NANO, "aux_loss": False}},
    "RF-DETR segmentation": {"model": SEG},
}
OBJECTS = (((2, 1), (3, 2)), ((2, 0), (0, 0)), ((0, 0), (0, 0)), ((1, 2), (0, 4)))  # by step, rank and image


class Step(nn.Module):
    """A training step as the forward pass that DistributedDataParallel wraps."""

    def __init__(self, module: DetectorModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch, step: int) -> Tensor:
        torch.manual_seed(step)
        return self.module.compute_losses(batch)["loss"]


def build_module(document: dict[str, Any]) -> DetectorModule:
    torch.manual_seed(0)
    side = 72 if document["model"].get("rfdetr", {}).get("variant") == "seg_nano" else 64
    augmentation = {"multi_scales": [], "train_spatial_size": [side, side], "eval_spatial_size": [side, side]}
    train = {"activation_checkpoint": False, "num_epochs": 1, **document.get("train", {})}
    dataset = {"num_classes": CLASSES, "augmentation": augmentation}
    spec = spec_from_dict({**document, "results_dir": "unused", "dataset": dataset, "train": train})
    class_map = ClassMap([ClassEntry(index, index, f"class {index}") for index in range(CLASSES)], CLASSES)
    if spec.distill is None:
        return DetectorModule(spec, class_map)
    teacher = spec_from_dict({"results_dir": "unused", "model": {**TINY, "backbone": "resnet_18"}})
    return DistillModule(spec, class_map, build_detector(teacher.model, CLASSES), class_map)


def batches(rank: int, side: int, masks: bool) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(rank)
    for step in OBJECTS:
        targets = []
        for index, count in enumerate(step[rank]):
            boxes = torch.rand(count, 4, generator=generator) * 0.3 + 0.2
            labels = torch.randint(0, CLASSES, (count,), generator=generator)
            mask = torch.rand(count, side, side, generator=generator) > 0.5 if masks else None
            targets.append(Target(boxes, labels, index + 1, (64, 64), (64.0, 64.0), "", mask))
        yield Batch(torch.randint(0, 255, (2, 3, side, side), generator=generator, dtype=torch.uint8), targets)


def train(module: DetectorModule, rank: int, options: dict[str, Any]) -> dict[str, Tensor]:
    """The weights after a few steps; every trained parameter has a gradient in each."""
    wrapped = DistributedDataParallel(Step(module).train(), **options)
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD([parameter for _, parameter in trained], lr=1e-3)
    side = module.spec.dataset.augmentation.train_spatial_size[0]
    for index, batch in enumerate(batches(rank, side, module.detector.predicts == "masks")):
        optimizer.zero_grad()
        wrapped(batch, index).backward()
        assert [name for name, parameter in trained if parameter.grad is None] == []
        optimizer.step()
    return module.state_dict()


def compare(rank: int, store: str, cases: dict[str, dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    options = ddp_options()
    for name, document in cases.items():
        module = build_module(document)
        reference = train(copy.deepcopy(module), rank, {"find_unused_parameters": True})
        for key, tensor in train(module, rank, options).items():
            torch.testing.assert_close(tensor, reference[key], rtol=0, atol=0, msg=f"{name}: {key}")
    torch.distributed.destroy_process_group()


def ddp_options(static: bool = True) -> dict[str, Any]:
    strategy = choose_strategy("ddp", True, "cpu", static)
    assert isinstance(strategy, DDPStrategy)
    return dict(strategy._ddp_kwargs)


def test_gradients_are_views_of_buckets_and_the_graph_is_static_unless_it_varies():
    options = {"find_unused_parameters": False, "gradient_as_bucket_view": True}
    assert ddp_options() == {**options, "static_graph": True}
    assert ddp_options(static=False) == {**options, "static_graph": False}


@pytest.mark.parametrize("cases", [CASES, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["some", "others"])
def test_two_processes_learn_the_same_weights_as_with_a_search_for_unused_parameters(tmp_path: Path, cases):
    torch.multiprocessing.spawn(compare, args=(str(tmp_path / "store"), cases), nprocs=2)


def compare_compiled(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    module = build_module({"model": TINY, "train": {"activation_checkpoint": True}})
    reference = train(copy.deepcopy(module), rank, ddp_options())
    compilation.BACKEND = "aot_eager"
    compilation.compile_network(module.detector)
    for key, tensor in train(module, rank, ddp_options()).items():
        torch.testing.assert_close(tensor, reference[key], rtol=1e-4, atol=1e-5, msg=key)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_a_compiled_network_learn_the_same_weights(tmp_path: Path):
    torch.multiprocessing.spawn(compare_compiled, args=(str(tmp_path / "store"),), nprocs=2)
