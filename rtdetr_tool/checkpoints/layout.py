"""What a loaded file holds, whose it is, and the weights in it by our own names.

Our names after all prefixes are those of the public RT-DETR release and of TAO: `backbone.*`, `encoder.*`,
`decoder.*` (and `frozen_radio.*`). Files are recognised by the names of their tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from rtdetr_tool.checkpoints.backbone_names import own_backbone_names
from rtdetr_tool.checkpoints.official_rtdetr import (
    from_official,
    from_official_backbone,
    is_official_backbone,
    is_official_rtdetr,
    is_version_2,
)
from rtdetr_tool.checkpoints.renames import count
from rtdetr_tool.checkpoints.rfdetr import from_rfdetr, is_own_rfdetr, is_rfdetr
from rtdetr_tool.checkpoints.transformers_rtdetr import POINT_SHARES, from_transformers, is_transformers_rtdetr
from rtdetr_tool.errors import CheckpointError

TAO_PREFIX = "model.model."
PARTS = ("backbone", "encoder", "decoder")

OURS, TAO, OFFICIAL, TRANSFORMERS, BARE = "ours", "tao", "official", "transformers", "bare"
RFDETR = "rfdetr"

# Where programs put the state dict inside a checkpoint, first match wins.
_CONTAINERS = ("state_dict", "model", "module", "weights")
# Wrappers around the detector, longest first; a prefix counts only when a known part follows it.
_PREFIXES = (TAO_PREFIX, "model.student.", "module.model.", "model.", "module.", "")
# (what it is, how a name starts that only such files have, what to do)
_STRANGERS = (
    ("a Hugging Face transformers network, but not a whole RT-DETR", "model.backbone.model.", "only RT-DETR fits"),
    ("a Hugging Face transformers DETR", "model.backbone.conv_encoder.", "only RT-DETR weights fit"),
    ("a torchvision or timm ResNet classifier", "layer1.0.conv1.weight", "give it as model.pretrained_backbone_path"),
    ("a torchvision or timm ConvNeXt classifier", "stages.0.", "give it as model.pretrained_backbone_path"),
    ("an official RT-DETR backbone", "res_layers.0.", "give it as model.pretrained_backbone_path"),
    ("an Ultralytics model", "model.0.conv.weight", "only RT-DETR weights fit"),
    ("a DETR", "transformer.decoder.layers.0.", "only RT-DETR weights fit"),
)


class Layout(NamedTuple):
    """A detector's tensors by the names of their `kind`, without wrappers."""

    kind: str
    what: str  # for people, such as "an official RT-DETRv2 checkpoint"
    averaged: bool  # the weights are a moving average over training (EMA)
    tensors: dict[str, Tensor]
    version: int = 1  # of RT-DETR, as far as the names tell


def state_dict_of(payload: Mapping[str, Any]) -> dict[str, Tensor]:
    """The first thing in a checkpoint that is a dictionary of tensors (possibly the checkpoint itself); {} if none.

    Of the trained and the averaged weights that the official RT-DETR keeps, the averaged ones: they are what it
    evaluates and publishes.
    """
    if averaged := _official_average(payload):
        return averaged
    for name in _CONTAINERS:
        inner = payload.get(name)
        if isinstance(inner, Mapping) and (tensors := _tensors(inner)):
            return tensors
    return _tensors(payload)


def identify(payload: Mapping[str, Any], source: str) -> Layout:
    """Whose detector this is; CheckpointError when the tensors are not a detector's."""
    if payload.get("state_dict_encrypted"):
        raise CheckpointError(f"{source} is encrypted; decrypt it with the TAO version that wrote it.")
    tensors = _some_tensors(payload, source)
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    averaged = bool(_official_average(payload))
    if is_transformers_rtdetr(plain):
        version = 2 if any(name.endswith(POINT_SHARES) for name in plain) else 1
        return Layout(TRANSFORMERS, f"a Hugging Face transformers RT-DETR{_suffix(version)}", False, plain, version)
    if is_official_rtdetr(plain):
        version = 2 if is_version_2(plain) else 1
        return Layout(OFFICIAL, f"an official RT-DETR{_suffix(version)} checkpoint", averaged, plain, version)
    if is_rfdetr(plain):
        return Layout(RFDETR, "an RF-DETR checkpoint of Roboflow", False, plain)
    for what, marker, advice in _STRANGERS:
        if any(name.startswith(marker) for name in plain):
            raise CheckpointError(f"{source} is {what}, not a detector of this tool: {advice}.")
    for prefix in _PREFIXES:
        weights = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if _has_parts(weights):
            return _own_names(payload, weights, averaged)
    raise CheckpointError(
        f"{source} is another program's checkpoint: its {len(tensors)} tensors are named like "
        f"{_examples(tensors)}; a detector has backbone.*, encoder.* and decoder.*."
    )


def detector_weights(payload: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The detector's tensors by our names; CheckpointError when these are not a detector's names."""
    return to_own_names(identify(payload, source), source)


def to_own_names(layout: Layout, source: str) -> dict[str, Tensor]:
    """The tensors of a layout by our names; CheckpointError listing those without a counterpart."""
    tables = {OFFICIAL: from_official, TRANSFORMERS: from_transformers, RFDETR: from_rfdetr}
    convert = tables.get(layout.kind, _with_own_backbone)
    try:
        return convert(layout.tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{source} is {layout.what} that cannot be converted: {error}.") from error


def backbone_weights(payload: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """A backbone's tensors by our names.

    From timm's or torchvision's file, a backbone of TAO, of the official RT-DETR or of the network's own repository, or
    from a whole detector.
    """
    tensors = _some_tensors(payload, source)
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if is_transformers_rtdetr(plain) or is_official_rtdetr(plain):
        weights = detector_weights(payload, source)
        return {
            name.removeprefix("backbone."): tensor for name, tensor in weights.items() if name.startswith("backbone.")
        }
    in_backbone = [name for name in tensors if ".backbone." in f".{name}"]
    if in_backbone and any("decoder." in name for name in tensors):  # a whole detector
        return _backbone_by_own_names({name.split("backbone.", 1)[1]: tensors[name] for name in in_backbone}, source)
    cleaned: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for prefix in ("module.", "model.model.backbone.", "model.backbone.", "model.encoder.", "backbone.", "model."):
            name = name.removeprefix(prefix)
        cleaned[name.removeprefix("ema_")] = tensor
    return _backbone_by_own_names(cleaned, source)


def _backbone_by_own_names(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    try:
        return from_official_backbone(weights) if is_official_backbone(weights) else own_backbone_names(weights)
    except CheckpointError as error:
        raise CheckpointError(f"{source} is a backbone that cannot be converted: {error}.") from error


def _with_own_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """TAO's names are ours but for those of some backbones."""
    if is_own_rfdetr(weights):
        return dict(weights)
    start = "backbone."
    backbone = {name[len(start) :]: tensor for name, tensor in weights.items() if name.startswith(start)}
    others = {name: tensor for name, tensor in weights.items() if not name.startswith(start)}
    return {**{start + name: tensor for name, tensor in own_backbone_names(backbone).items()}, **others}


def _suffix(version: int) -> str:
    return "v2" if version == 2 else ""


def _own_names(payload: Mapping[str, Any], weights: dict[str, Tensor], averaged: bool) -> Layout:
    """Files whose names are ours already: our own, TAO's, and bare state dicts."""
    meta = payload.get("rtdetr_tool")
    if isinstance(meta, Mapping):
        return Layout(OURS, "a checkpoint of this tool", meta.get("weights") == "ema", weights)
    if payload.get("tao_model") == "rtdetr":
        states = [state for state in payload.get("optimizer_states") or () if isinstance(state, Mapping)]
        return Layout(TAO, "an NVIDIA TAO checkpoint", any("ema" in state for state in states), weights)
    return Layout(BARE, "a detector's weights", averaged, weights)


def _official_average(payload: Mapping[str, Any]) -> dict[str, Tensor]:
    ema = payload.get("ema")  # the public RT-DETR keeps {"ema": {"module": state dict}}
    inner = ema.get("module") if isinstance(ema, Mapping) else None
    return _tensors(inner) if isinstance(inner, Mapping) else {}


def _some_tensors(payload: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    tensors = state_dict_of(payload)
    if not tensors:
        keys = ", ".join(map(repr, list(payload)[:6])) or "nothing"
        raise CheckpointError(f"{source} holds no weights (found: {keys}).")
    return tensors


def _has_parts(weights: Mapping[str, Tensor]) -> bool:
    return all(count(weights, f"{part}.") for part in PARTS)


def _tensors(mapping: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in mapping.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _examples(tensors: Mapping[str, Tensor]) -> str:
    names = list(tensors)
    picked = [names[0], names[len(names) // 2], names[-1]] if len(names) > 3 else names
    return ", ".join(map(repr, dict.fromkeys(picked)))
