"""What a loaded file holds, and the detector's weights in it by our own names.

The names after all prefixes are those of the public RT-DETR release and of TAO: `backbone.*`, `encoder.*`, `decoder.*`
(and `frozen_radio.*`). Files of other programs are recognised by their names, so that the message can say what they
are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rtdetr_tool.errors import CheckpointError

TAO_PREFIX = "model.model."
PARTS = ("backbone", "encoder", "decoder")

# Where programs put the state dict inside a checkpoint, first match wins.
_CONTAINERS = ("state_dict", "model", "module", "weights")
# Wrappers around the detector, longest first; a prefix counts only when a known part follows it.
_PREFIXES = (TAO_PREFIX, "model.student.", "module.model.", "model.", "module.", "")
# (what it is, how a name starts that only such files have, what to do)
_STRANGERS = (
    ("a Hugging Face transformers RT-DETR", "model.backbone.model.", "convert it to our names first"),
    ("a Hugging Face transformers RT-DETR", "model.backbone.conv_encoder.", "convert it to our names first"),
    ("a torchvision or timm ResNet classifier", "layer1.0.conv1.weight", "give it as model.pretrained_backbone_path"),
    ("a torchvision or timm ConvNeXt classifier", "stages.0.", "give it as model.pretrained_backbone_path"),
    ("an Ultralytics model", "model.0.conv.weight", "only RT-DETR weights fit"),
    ("a DETR", "transformer.decoder.layers.0.", "only RT-DETR weights fit"),
)


def state_dict_of(payload: Mapping[str, Any]) -> dict[str, Tensor]:
    """The first thing in a checkpoint that is a dictionary of tensors (possibly the checkpoint itself); {} if none."""
    for name in _CONTAINERS:
        inner = payload.get(name)
        if isinstance(inner, Mapping) and (tensors := _tensors(inner)):
            return tensors
    ema = payload.get("ema")  # the public RT-DETR keeps {"ema": {"module": state dict}}
    if isinstance(ema, Mapping) and isinstance(ema.get("module"), Mapping):
        return _tensors(ema["module"])
    return _tensors(payload)


def detector_weights(payload: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The detector's tensors without any wrapper prefix; CheckpointError when these are not a detector's names."""
    if payload.get("state_dict_encrypted"):
        raise CheckpointError(f"{source} is encrypted; decrypt it with the TAO version that wrote it.")
    tensors = state_dict_of(payload)
    if not tensors:
        keys = ", ".join(map(repr, list(payload)[:6])) or "nothing"
        raise CheckpointError(f"{source} holds no weights (found: {keys}).")
    for what, marker, advice in _STRANGERS:
        if any(name.removeprefix("module.").startswith(marker) for name in tensors):
            raise CheckpointError(f"{source} is {what}, not a detector of this tool: {advice}.")
    for prefix in _PREFIXES:
        weights = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if _has_parts(weights):
            return weights
    raise CheckpointError(
        f"{source} is another program's checkpoint: its {len(tensors)} tensors are named like "
        f"{_examples(tensors)}; a detector has backbone.*, encoder.* and decoder.*."
    )


def backbone_weights(payload: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """A backbone's tensors as timm names them, from a timm or torchvision file, a TAO backbone or a whole detector."""
    tensors = state_dict_of(payload)
    if not tensors:
        raise CheckpointError(f"{source} holds no weights (found: {', '.join(map(repr, list(payload)[:6]))}).")
    in_backbone = [name for name in tensors if ".backbone." in f".{name}"]
    if in_backbone and any("decoder." in name for name in tensors):  # a whole detector
        return {name.split("backbone.", 1)[1]: tensors[name] for name in in_backbone}
    cleaned: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for prefix in ("module.", "model.model.backbone.", "model.backbone.", "model.encoder.", "backbone.", "model."):
            name = name.removeprefix(prefix)
        cleaned[name.removeprefix("ema_")] = tensor
    return cleaned


def _has_parts(weights: Mapping[str, Tensor]) -> bool:
    found = {name.split(".", 1)[0] for name in weights}
    return found.issuperset(PARTS)


def _tensors(mapping: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in mapping.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _examples(tensors: Mapping[str, Tensor]) -> str:
    names = list(tensors)
    picked = [names[0], names[len(names) // 2], names[-1]] if len(names) > 3 else names
    return ", ".join(map(repr, dict.fromkeys(picked)))
