"""What a loaded file holds, whose it is, and the weights in it by our own names.

Our names after all prefixes are those of the public RT-DETR release and of TAO: `backbone.*`, `encoder.*`,
`decoder.*` (and `frozen_radio.*`). Files are recognised by the names of their tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from rtdetr_tool.checkpoints.family_weights import ForeignFormat, family_of_tensors, weights_of
from rtdetr_tool.checkpoints.renames import count
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families import Family, all_families

TAO_PREFIX = "model.model."
PARTS = ("backbone", "encoder", "decoder")

OURS, TAO, BARE = "ours", "tao", "bare"  # files by our names; those of others are a `ForeignFormat`
TAO_MODEL = {"tao_model": "rtdetr"}  # what TAO writes into its checkpoints, and this tool for TAO

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
    family: Family
    format: ForeignFormat | None = None  # None: by our names
    version: int = 1  # of the family's architecture, as far as the names tell


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
    tensors = some_tensors(payload, source)
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    averaged = bool(_official_average(payload))
    for family in all_families():
        for entry in weights_of(family).FORMATS:
            found = entry.recognize(plain)
            if found is not None:
                return Layout(entry.kind, found.what, averaged, plain, family, entry, found.version)
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
    convert = weights_of(layout.family).own_names if layout.format is None else layout.format.convert
    try:
        return convert(layout.tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{source} is {layout.what} that cannot be converted: {error}.") from error


def _own_names(payload: Mapping[str, Any], weights: dict[str, Tensor], averaged: bool) -> Layout:
    """Files whose names are ours already: our own, TAO's, and bare state dicts."""
    meta, family = payload.get("rtdetr_tool"), family_of_tensors(weights)
    if isinstance(meta, Mapping):
        return Layout(OURS, "a checkpoint of this tool", meta.get("weights") == "ema", weights, family)
    if TAO_MODEL.items() <= payload.items():
        states = [state for state in payload.get("optimizer_states") or () if isinstance(state, Mapping)]
        return Layout(TAO, "an NVIDIA TAO checkpoint", any("ema" in state for state in states), weights, family)
    return Layout(BARE, "a detector's weights", averaged, weights, family)


def _official_average(payload: Mapping[str, Any]) -> dict[str, Tensor]:
    ema = payload.get("ema")  # the public RT-DETR keeps {"ema": {"module": state dict}}
    inner = ema.get("module") if isinstance(ema, Mapping) else None
    return _tensors(inner) if isinstance(inner, Mapping) else {}


def some_tensors(payload: Mapping[str, Any], source: str) -> dict[str, Tensor]:
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
