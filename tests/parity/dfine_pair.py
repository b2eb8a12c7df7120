"""A random D-FINE of transformers and the same network of ours, for each published variant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rtdetr_tool.catalog import DFINE_VARIANTS
from rtdetr_tool.families.dfine.build import build_criterion, build_detector
from rtdetr_tool.families.dfine.loss import DFINECriterion
from rtdetr_tool.families.dfine.model.detector import DFINE
from rtdetr_tool.families.dfine.spec import resolve_dfine
from rtdetr_tool.families.dfine.transformers_config import config_for
from rtdetr_tool.families.dfine.transformers_names import from_transformers
from rtdetr_tool.ops.batch_norm import fix_batch_norms
from rtdetr_tool.spec import ModelSpec, spec_from_dict, spec_to_dict

transformers = pytest.importorskip("transformers")

CLASSES = 5
LARGE = ("l", "x")
EACH_VARIANT = [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in DFINE_VARIANTS]


@dataclass
class Pair:
    reference: nn.Module
    ours: DFINE
    model: ModelSpec

    def train(self) -> Pair:
        self.reference.train()
        self.ours.train()
        return self

    def eval(self) -> Pair:
        self.reference.eval()
        self.ours.eval()
        return self

    def double(self) -> Pair:
        self.reference.double()
        self.ours.double()
        return self

    @property
    def criterion(self) -> DFINECriterion:
        return build_criterion(self.model)

    def constants(self) -> tuple[list[int], float]:
        full = resolve_dfine(self.model.dfine)
        return full.num_points, full.reg_scale


def build_pair(variant: str, disturb: Any, frozen: bool = False, dn_number: int = 0, **fields: Any) -> Pair:
    """A pair with the same random weights, in which every tensor matters."""
    own = {"variant": variant, "num_queries": 20, "dn_number": dn_number, "pe_order": "rows", **fields}
    model = spec_from_dict({"model": {"arch": "dfine", "dfine": own}}).model
    plain = spec_to_dict(model)
    config = config_for({**spec_to_dict(resolve_dfine(model.dfine)), "freeze_norm": frozen}, plain, {}, CLASSES)
    torch.manual_seed(1)
    reference = transformers.DFineForObjectDetection(transformers.DFineConfig.from_dict(config))
    reference.set_attn_implementation("eager")  # torch's kernel is wrong for double queries with a mask in float32
    constants = {name: t.clone() for name, t in reference.state_dict().items() if is_constant(name)}
    disturb(reference)
    reference.load_state_dict(constants, strict=False)
    ours = build_detector(model, CLASSES, False)
    if frozen:
        fix_batch_norms(ours.backbone)
    ours.load_state_dict(from_transformers(reference.state_dict()))
    return Pair(reference, ours, model)


def is_constant(name: str) -> bool:
    return name.endswith((".num_points_scale", ".reg_scale", ".up"))


def outputs(pair: Pair, images: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    with torch.no_grad():
        reference, ours = pair.reference(images), pair.ours(images)
    return (ours.logits, ours.boxes), (reference.logits, reference.pred_boxes)
