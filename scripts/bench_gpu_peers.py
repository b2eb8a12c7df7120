"""The detectors that `bench_gpu.py` compares with ours: RT-DETRv2, official and in transformers, and rfdetr."""

from __future__ import annotations

import copy
import importlib
import importlib.machinery
import importlib.util
import logging
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rtdetr_tool.families.dfine.spec import resolve_dfine
from rtdetr_tool.families.dfine.transformers_config import config_for
from rtdetr_tool.ops.pixels import normalize
from rtdetr_tool.ops.structures import Target
from rtdetr_tool.spec import ModelSpec, spec_from_dict, spec_to_dict

CLASSES = 80
OFFICIAL_CONFIGS = {"r18": "rtdetrv2_r18vd_120e_coco.yml", "r50": "rtdetrv2_r50vd_6x_coco.yml"}
EVALUATION = ("", ".core", ".core.mask", ".utils", ".utils.pytorch")


class Placeholder(types.ModuleType):
    """A module that is not installed; its attributes are empty classes."""

    __path__: tuple[str, ...] = ()
    __spec__ = importlib.machinery.ModuleSpec("placeholder", None)

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@dataclass(frozen=True)
class Peer:
    """A detector for training, its loss, and the network that it is deployed as.

    `loss` gets images [B, 3, H, W] RGB 0..1 and their targets, `predict` images only.
    """

    network: nn.Module
    loss: Callable[[Tensor, Sequence[Target]], Tensor]
    predict: Callable[[Tensor], object]


def build_peers(
    model: str, device: torch.device, side: int, queries: int, official: Path | None
) -> dict[str, Callable[[], Peer]]:
    """Name -> builder of the peers of a model that are available here."""
    peers: dict[str, Callable[[], Peer]] = {}
    if model in OFFICIAL_CONFIGS:
        if official is not None:
            peers["official"] = lambda: official_peer(model, official, device, side, queries)
        if importlib.util.find_spec("transformers"):
            peers["transformers"] = lambda: transformers_peer(model, device, queries)
    elif model == "dfine" and importlib.util.find_spec("transformers"):
        peers["transformers"] = lambda: dfine_peer(dfine_spec("s", queries), device)
    elif model == "nano" and importlib.util.find_spec("rfdetr"):
        peers["rfdetr"] = lambda: rfdetr_peer(device, queries)
    return peers


def official_peer(model: str, checkout: Path, device: torch.device, side: int, queries: int) -> Peer:
    """RT-DETRv2 from a checkout of lyuwenyu/RT-DETR, with its own configuration but random weights."""
    root = checkout / "rtdetrv2_pytorch"
    root = root if root.is_dir() else checkout
    sys.path.insert(0, str(root))
    if "faster_coco_eval" not in sys.modules and importlib.util.find_spec("faster_coco_eval") is None:
        for part in EVALUATION:  # imported by its data package, but not used here
            name = f"faster_coco_eval{part}"
            module = sys.modules.setdefault(name, Placeholder(name))
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
    try:
        core = importlib.import_module("src.core")
        importlib.import_module("src.zoo")
        importlib.import_module("src.nn")
        config = core.YAMLConfig(
            str(root / "configs" / "rtdetrv2" / OFFICIAL_CONFIGS[model]),
            PResNet={"pretrained": False}, RTDETRTransformerv2={"num_queries": queries}, eval_spatial_size=[side, side],
        )  # fmt: skip
        network, criterion = config.model, config.criterion
    finally:
        sys.path.remove(str(root))
    network, criterion = network.to(device).train(), criterion.to(device).train()
    deployed = copy.deepcopy(network).deploy().eval()

    def loss(images: Tensor, targets: Sequence[Target]) -> Tensor:
        labels = labels_of(targets, "labels")
        terms = criterion(network(images, labels), labels)
        total: Tensor = sum(terms.values(), images.new_zeros(()))
        return total

    return Peer(network, loss, deployed)


def transformers_peer(model: str, device: torch.device, queries: int) -> Peer:
    import transformers

    basic = model == "r18"
    sizes = [64, 128, 256, 512] if basic else [256, 512, 1024, 2048]
    backbone = transformers.RTDetrResNetConfig(
        depths=[2, 2, 2, 2] if basic else [3, 4, 6, 3],
        layer_type="basic" if basic else "bottleneck",
        hidden_sizes=sizes,
        out_features=["stage2", "stage3", "stage4"],
    )
    changes = {"decoder_layers": 3, "hidden_expansion": 0.5} if basic else {}
    config = transformers.RTDetrV2Config(
        backbone_config=backbone, num_labels=CLASSES, encoder_in_channels=sizes[1:], freeze_backbone_batch_norms=False,
        num_queries=queries, **changes,
    )  # fmt: skip
    network = transformers.RTDetrV2ForObjectDetection(config)
    for module in network.modules():  # its initial norms are near zero, with which all queries would tie
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    network = network.to(device).train()
    deployed = copy.deepcopy(network).eval()
    return Peer(
        network, lambda images, targets: network(images, labels=labels_of(targets, "class_labels")).loss, deployed
    )


def dfine_spec(variant: str, queries: int) -> ModelSpec:
    own = {"variant": variant, "num_queries": queries, "pe_order": "rows", "freeze_norm": False}
    return spec_from_dict({"model": {"arch": "dfine", "dfine": own, "num_select": queries}}).model


def dfine_peer(spec: ModelSpec, device: torch.device) -> Peer:
    """transformers' D-FINE with the architecture of a spec and random weights."""
    import transformers

    fields = {**spec_to_dict(resolve_dfine(spec.dfine)), "freeze_norm": False}
    config = config_for(fields, spec_to_dict(spec), {}, CLASSES)
    network = transformers.DFineForObjectDetection(transformers.DFineConfig.from_dict(config))
    for module in network.modules():  # near zero, with which all queries would tie
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    network = network.to(device).train()
    deployed = copy.deepcopy(network).eval()
    return Peer(
        network, lambda images, targets: network(images, labels=labels_of(targets, "class_labels")).loss, deployed
    )


def rfdetr_peer(device: torch.device, queries: int) -> Peer:
    logging.getLogger("rf-detr").setLevel(logging.ERROR)
    rfdetr = importlib.import_module("rfdetr")
    settings = importlib.import_module("rfdetr.config").TrainConfig(dataset_dir=".", output_dir=".")
    build = importlib.import_module("rfdetr.models").build_criterion_from_config
    wrapper = rfdetr.RFDETRNano(pretrain_weights=None, device=device.type, num_classes=CLASSES, num_queries=queries)
    network = wrapper.model.model.to(device).train()
    criterion = build(wrapper.model_config, settings)[0].to(device).train()
    deployed = copy.deepcopy(network).eval()
    if hasattr(deployed, "export"):
        deployed.export()  # without masks and groups of queries, as the package deploys it

    def loss(images: Tensor, targets: Sequence[Target]) -> Tensor:
        labels = labels_of(targets, "labels")
        terms = criterion(network(normalize(images), labels), labels)
        weighted = [weight * terms[name] for name, weight in criterion.weight_dict.items() if name in terms]
        return torch.stack(weighted).sum()

    return Peer(network, loss, lambda images: deployed(normalize(images)))


def labels_of(targets: Sequence[Target], classes: str) -> list[dict[str, Any]]:
    """Targets as the peers expect them; `classes` is their name of the labels."""
    return [{classes: target.labels, "boxes": target.boxes} for target in targets]
