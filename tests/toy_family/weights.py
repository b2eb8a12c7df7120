"""Weights of a toy, from another program and with our names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rtdetr_tool.checkpoints.detector_file import DetectorFile, weights_file
from rtdetr_tool.checkpoints.family_weights import FileContents, ForeignFormat, Recognized, Writer
from rtdetr_tool.checkpoints.identify import state_dict_of
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.checkpoints.metadata import build_metadata
from rtdetr_tool.checkpoints.renames import count
from toy_family.spec import VARIANTS

PARTS = {"body.": "backbone.", "neck.": "encoder.", "head.": "decoder."}  # the other program's names -> ours


def _recognize(tensors: Mapping[str, Tensor]) -> Recognized | None:
    return Recognized("a checkpoint of the toy's authors") if "head.queries.weight" in tensors else None


def from_toy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {PARTS[f"{part}."] + rest: t for name, t in tensors.items() for part, _, rest in [name.partition(".")]}


FORMATS = (ForeignFormat("toy", _recognize, from_toy),)
WRITERS: Mapping[str, Writer] = {}


def is_complete(weights: Mapping[str, Tensor]) -> bool:
    return "decoder.queries.weight" in weights


def native_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(weights)


def summary(model: Mapping[str, Any], classes: int) -> str:
    return f"variant {model['toy']['variant']}, {classes} classes"


def describe(file: DetectorFile, contents: FileContents, given: Mapping[str, Any]) -> None:
    queries, width = file.weights["decoder.queries.weight"].shape
    classes = file.weights["decoder.class_embed.weight"].shape[0]
    own = {
        "variant": next(name for name, size in VARIANTS.items() if size == width),
        "num_queries": queries,
        "dec_layers": count(file.weights, "decoder.layers."),
    }
    file.meta = build_metadata("", {"model": {"arch": "toy", "toy": own}, "dataset": {"num_classes": classes}}, [])
    file.meta["origin"] = {"format": file.kind, "version": 1}


def read_backbone(source: str, model: Any) -> dict[str, Tensor]:
    return state_dict_of(load_checkpoint(weights_file(source)))
