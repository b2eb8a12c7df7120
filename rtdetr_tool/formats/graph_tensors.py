"""Convert between the package's tensors and those of a deployed file, in any layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rtdetr_tool.catalog import KEYPOINTS, Layout
from rtdetr_tool.families.base import KeypointLayout
from rtdetr_tool.formats.graph_interface import GraphInterface
from rtdetr_tool.ops.pixels import normalize
from rtdetr_tool.ops.structures import KeypointPredictions, Predictions

_TRACE_ALPHA = 0.2  # of files that do not record it, as in RF-DETR's package


def to_graph(images: Tensor, layout: Layout) -> Tensor:
    """images [B, C, H, W] 0..1 -> the pixels that the file expects."""
    return normalize(images) if layout.normalised else images


def predictions_of(outputs: Mapping[str, Tensor], interface: GraphInterface) -> Predictions:
    """A file's outputs by name as predictions in float32, without an added background."""
    fields: dict[str, Any] = {
        field: outputs[name].float() for field, name in interface.layout.outputs.items() if name in outputs
    }
    if KEYPOINTS in fields:
        layout = interface.keypoints or KeypointLayout((fields[KEYPOINTS].shape[2],), _TRACE_ALPHA)
        fields[KEYPOINTS] = KeypointPredictions(fields[KEYPOINTS], layout.counts, layout.trace_alpha)
    return Predictions(**{**fields, "logits": fields["logits"][..., : interface.classes]})


def names_to_run(interface: GraphInterface) -> list[str]:
    """The outputs that `predictions_of` reads."""
    return [name for name in interface.layout.outputs.values() if name in interface.outputs]
