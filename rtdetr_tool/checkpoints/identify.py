"""Identify the format of a loaded checkpoint by its tensor names, and rename its weights to ours.

Without prefixes, our names are those of the public RT-DETR release and of TAO: `backbone.*`, `encoder.*`, `decoder.*`
(and `frozen_radio.*`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from rtdetr_tool.checkpoints.adapters import alpha_of, has_adapters, merge_adapters
from rtdetr_tool.checkpoints.family_weights import ForeignFormat, family_of_tensors, weights_of
from rtdetr_tool.checkpoints.renames import count
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families import Family, all_families

TAO_PREFIX = "model.model."
PARTS = ("backbone", "encoder", "decoder")

OURS, TAO, BARE = "ours", "tao", "bare"  # files with our names; the others have a `ForeignFormat`
TAO_MODEL = {"tao_model": "rtdetr"}  # TAO's marker in checkpoints, which we write too so that TAO accepts them

# Keys under which programs store the state dict, in order of precedence.
_CONTAINERS = ("state_dict", "model", "module", "weights")
# Prefixes of wrappers around the detector, longest first; one only counts if a known part follows it.
_PREFIXES = (TAO_PREFIX, "model.student.", "module.model.", "model.", "module.", "")
_SUPPORTED_MODELS = f"only weights of {', '.join(family.title for family in all_families())} are supported"
_USE_AS_BACKBONE = "use it as model.pretrained_backbone_path"
# (what it is, start of a name that only these files have, what to do)
_NOT_DETECTORS = (
    ("an incomplete RT-DETR of Hugging Face transformers", "model.backbone.model.", "use the complete model"),
    ("a DETR of Hugging Face transformers", "model.backbone.conv_encoder.", _SUPPORTED_MODELS),
    ("a torchvision or timm ResNet classifier", "layer1.0.conv1.weight", _USE_AS_BACKBONE),
    ("a torchvision or timm ConvNeXt classifier", "stages.0.", _USE_AS_BACKBONE),
    ("an official RT-DETR backbone", "res_layers.0.", _USE_AS_BACKBONE),
    ("an Ultralytics model", "model.0.conv.weight", _SUPPORTED_MODELS),
    ("a DETR", "transformer.decoder.layers.0.", _SUPPORTED_MODELS),
)


class Identified(NamedTuple):
    """The format of a checkpoint and its tensors, with that format's names but without prefixes of wrappers."""

    kind: str
    what: str  # for messages, such as "an official RT-DETRv2 checkpoint"
    averaged: bool  # the weights are a moving average over training (EMA)
    tensors: dict[str, Tensor]
    family: Family
    format: ForeignFormat | None = None  # None: the names are ours
    version: int = 1  # of the family's architecture, as far as the names show it


def state_dict_of(payload: Mapping[str, Any]) -> dict[str, Tensor]:
    """The first dictionary of tensors in a checkpoint (possibly the checkpoint itself); {} if there is none.

    The official RT-DETR stores both trained and averaged weights; its averaged ones are used, as it evaluates and
    publishes those.
    """
    if averaged := _official_average(payload):
        return averaged
    for name in _CONTAINERS:
        inner = payload.get(name)
        if isinstance(inner, Mapping) and (tensors := _tensors(inner)):
            return tensors
    return _tensors(payload)


def identify(payload: Mapping[str, Any], source: str) -> Identified:
    """The format of a detector's checkpoint; CheckpointError if the tensors are not those of a detector."""
    if payload.get("state_dict_encrypted"):
        raise CheckpointError(f"{source} is encrypted; decrypt it with the TAO version that wrote it.")
    tensors = require_tensors(payload, source)
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    averaged = bool(_official_average(payload))
    for family in all_families():
        for entry in weights_of(family).FORMATS:
            recognized = entry.recognize(plain)
            if recognized is not None:
                return Identified(entry.kind, recognized.what, averaged, plain, family, entry, recognized.version)
    for what, marker, advice in _NOT_DETECTORS:
        if any(name.startswith(marker) for name in plain):
            raise CheckpointError(f"{source} is {what}, not a supported detector; {advice}.")
    for prefix in _PREFIXES:
        weights = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if _has_parts(weights):
            return _identify_native(payload, _merged(payload, weights, source), averaged)
    raise CheckpointError(
        f"{source} is not a supported detector: its {len(tensors)} tensors have names such as {_examples(tensors)}; "
        "expected backbone.*, encoder.* and decoder.*."
    )


def detector_weights(payload: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The detector's tensors under our names; CheckpointError if they are not those of a detector."""
    return with_native_names(identify(payload, source), source)


def with_native_names(identified: Identified, source: str) -> dict[str, Tensor]:
    """The tensors under our names; CheckpointError listing those without a counterpart."""
    convert = weights_of(identified.family).native_names if identified.format is None else identified.format.convert
    try:
        return convert(identified.tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{source} is {identified.what} that cannot be converted: {error}.") from error


def _identify_native(payload: Mapping[str, Any], weights: dict[str, Tensor], averaged: bool) -> Identified:
    """Identify files with our names: our own, TAO's, and bare state dicts."""
    meta, family = payload.get("rtdetr_tool"), family_of_tensors(weights)
    if isinstance(meta, Mapping):
        return Identified(OURS, "a checkpoint of this tool", meta.get("weights") == "ema", weights, family)
    if TAO_MODEL.items() <= payload.items():
        states = [state for state in payload.get("optimizer_states") or () if isinstance(state, Mapping)]
        return Identified(TAO, "an NVIDIA TAO checkpoint", any("ema" in state for state in states), weights, family)
    return Identified(BARE, "a detector's weights", averaged, weights, family)


def _merged(payload: Mapping[str, Any], weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights with their adapters merged."""
    if not has_adapters(weights):
        return weights
    try:
        return merge_adapters(weights, alpha_of(payload.get("rtdetr_tool")))
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}.") from error


def _official_average(payload: Mapping[str, Any]) -> dict[str, Tensor]:
    ema = payload.get("ema")  # the public RT-DETR stores {"ema": {"module": state dict}}
    inner = ema.get("module") if isinstance(ema, Mapping) else None
    return _tensors(inner) if isinstance(inner, Mapping) else {}


def require_tensors(payload: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    tensors = state_dict_of(payload)
    if not tensors:
        keys = ", ".join(map(repr, list(payload)[:6])) or "nothing"
        raise CheckpointError(f"{source} has no weights; its keys are {keys}.")
    return tensors


def _has_parts(weights: Mapping[str, Tensor]) -> bool:
    return all(count(weights, f"{part}.") for part in PARTS)


def _tensors(mapping: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in mapping.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _examples(tensors: Mapping[str, Tensor]) -> str:
    names = list(tensors)
    picked = [names[0], names[len(names) // 2], names[-1]] if len(names) > 3 else names
    return ", ".join(map(repr, dict.fromkeys(picked)))
