"""Write what the RT-DETR of NVIDIA TAO (PyTorch) computes, as numbers that tests compare ours with.

Weights, images and targets are the formulas of `reference_fixtures.py`. Needs a checkout of NVIDIA/tao_pytorch_backend,
whose model and loss code is imported without its containers: logging, registries and readers of other formats are
replaced by placeholders, and deformable attention is the implementation in PyTorch that TAO has for CPUs.

    git clone https://github.com/NVIDIA/tao_pytorch_backend /tmp/tao
    python scripts/tao_fixtures.py /tmp/tao
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import timm  # noqa: F401  its kernels must be loaded before TAO's are ignored
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from reference_fixtures import (
    CLASSES,
    FIXTURES,
    LAYERS,
    QUERIES,
    SIDE,
    WIDTH,
    fix_norms,
    images,
    rounded,
    targets,
    weight,
)

ROOT = "nvidia_tao_pytorch"
DENOISING, NOISE_SEED = 6, 7
# One of every class of backbones that TAO has.
BACKBONES = (
    "resnet_18", "resnet_50", "convnext_tiny", "convnextv2_nano", "efficientvit_b0", "efficientvit_l0",
    "fan_tiny_8_p4_hybrid", "edgenext_x_small", "edgenext_x_small_bn_hs",
)  # fmt: skip
WEIGHTS = {"loss_vfl": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
GRADIENTS = (
    "model.backbone.layer4.1.conv2.weight",
    "model.encoder.pan_blocks.1.conv2.conv.weight",
    "model.decoder.decoder.layers.0.cross_attn.sampling_offsets.weight",
    "model.decoder.denoising_class_embed.weight",
)


class Registry(dict):
    """The part of fvcore's registry that TAO uses."""

    def __init__(self, name: str) -> None:
        super().__init__()

    def register(self) -> Callable[[Any], Any]:
        return lambda item: self.setdefault(item.__name__, item)


class Placeholders(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty modules for what the model code imports but does not compute with."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] in ("fvcore", "h5py", "einops", "open_clip") or name.startswith(f"{ROOT}.core"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return mock.MagicMock(__path__=[], __name__=spec.name, __spec__=spec)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == "fvcore.common.registry":
            module.Registry = Registry
        if module.__name__ == f"{ROOT}.core.distributed.comm":
            module.get_world_size, module.is_dist_avail_and_initialized = lambda: 1, lambda: False
            module.get_global_rank = lambda: 0


def import_models(checkout: Path) -> types.SimpleNamespace:
    """The model classes of TAO, without the packages around them."""
    sys.meta_path.insert(0, Placeholders())
    torch.ops.load_library = lambda path: None  # the CUDA kernels
    for name in ("", ".cv", ".cv.rtdetr", ".cv.rtdetr.model", ".cv.backbone_v2", ".cv.dino", ".cv.dino.model",
                 ".cv.deformable_detr", ".cv.deformable_detr.model", ".cv.deformable_detr.utils"):  # fmt: skip
        module = types.ModuleType(ROOT + name)
        module.__path__ = [str(checkout / Path(*(ROOT + name).split(".")))]
        sys.modules[ROOT + name] = module
    sys.modules[f"{ROOT}.cv.backbone_v2"].BACKBONE_REGISTRY = Registry("backbones")

    def load(name: str) -> types.ModuleType:
        return importlib.import_module(f"{ROOT}.cv.{name}")

    return types.SimpleNamespace(
        backbones=load("rtdetr.model.backbone").RTDETR_BACKBONE_REGISTRY,
        detector=load("rtdetr.model.build_nn_model").RTDETRModel,
        matcher=load("deformable_detr.model.matcher").HungarianMatcher,
        criterion=load("rtdetr.model.criterion").SetCriterion,
    )


def with_weights(model: nn.Module) -> nn.Module:
    """The model with the weights of the formula, in evaluation mode."""
    model.load_state_dict({name: weight(name, tensor) for name, tensor in model.state_dict().items()})
    return model.eval()


def measure_detector(models: types.SimpleNamespace) -> dict[str, Any]:
    model = with_weights(
        models.detector(
            "resnet_18",
            num_classes=CLASSES,
            hidden_dim=WIDTH,
            feat_channels=[WIDTH] * 3,
            num_queries=QUERIES,
            num_decoder_layers=LAYERS,
            num_denoising=DENOISING,
            eval_spatial_size=[SIDE, SIDE],
        )
    )
    with torch.no_grad():
        found = model(images())
    matcher = models.matcher(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0)
    criterion = models.criterion(matcher, WEIGHTS, ["vfl", "boxes"], alpha=0.75, gamma=2.0, num_classes=CLASSES)
    fix_norms(model)
    torch.manual_seed(NOISE_SEED)  # of the denoising queries
    losses = criterion(model(images(), targets()), targets())
    total = sum(losses.values())
    total.backward()
    gradients = dict(model.named_parameters())
    return {
        "shapes": {name: list(tensor.shape) for name, tensor in model.state_dict().items()},
        "logits": rounded(found["pred_logits"]),
        "boxes": rounded(found["pred_boxes"]),
        "losses": {name: round(value.item(), 7) for name, value in sorted(losses.items())},
        "total": round(total.item(), 6),
        "gradient_norms": {name: round(gradients[name].grad.norm().item(), 6) for name in GRADIENTS},
    }


def measure_backbone(models: types.SimpleNamespace, name: str) -> dict[str, Any]:
    model = with_weights(models.backbones[name](out_indices=[1, 2, 3])).to(precision(name))
    with torch.no_grad():
        maps = model.forward_feature_pyramid(images().to(precision(name)))
    return {
        "shapes": {tensor: list(value.shape) for tensor, value in model.state_dict().items()},
        "maps": [summary(feature) for feature in maps],
    }


def precision(name: str) -> torch.dtype:
    """Double precision, because rounding adds up; FAN and EdgeNeXt compute their position embedding in single."""
    return torch.float32 if name.startswith(("fan", "edgenext")) else torch.float64


def summary(feature: Tensor) -> dict[str, Any]:
    """Shape, mean, deviation and a few values of a feature map."""
    values = feature.flatten()
    picked = values[:: max(1, len(values) // 8)][:8]
    numbers = [float(values.mean()), float(values.std()), *picked.tolist()]
    return {"shape": list(feature.shape), "values": [float(f"{number:.9g}") for number in numbers]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", help="checkout of NVIDIA/tao_pytorch_backend")
    models = import_models(Path(parser.parse_args(arguments).checkout))
    torch.manual_seed(0)
    detector, backbones = measure_detector(models), {name: measure_backbone(models, name) for name in BACKBONES}
    for name, values in (("tao", detector), ("tao_backbones", backbones)):
        path = FIXTURES / f"{name}.json"
        lines = [f'"{key}": {json.dumps(value)}' for key, value in values.items()]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        print(f"Wrote {path}")


if __name__ == "__main__":
    main()
