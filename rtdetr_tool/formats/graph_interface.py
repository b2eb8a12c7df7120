"""Inputs and outputs of a deployed detector in any format; the only module that distinguishes layouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rtdetr_tool.catalog import LAYOUTS, Layout
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.base import KeypointLayout

Shape = tuple[int | None, ...]

_SMALLEST_SIDE = 5  # pixels; an axis below is one of channels
FEATURES = "features"  # names of the outputs of a file without decoder: features, features_1, ...
ADDED_BACKGROUND = "background_added"  # key of a description: the last class score was added for the layout


@dataclass(frozen=True)
class GraphInterface:
    """Inputs and outputs of a detector's graph; None is a dynamic axis."""

    layout: Layout
    batch: int | None
    size: tuple[int, int]  # (height, width)
    queries: int | None
    classes: int | None  # of the model, without an added background
    outputs: tuple[str, ...]
    opset: int | None = None  # operator set of an ONNX graph
    keypoints: KeypointLayout | None = None  # None: all keypoints belong to the first class
    channels: int = 3  # of images


def layout_of(inputs: Iterable[str], outputs: Iterable[str]) -> Layout | None:
    """The layout with these names; additional outputs are allowed."""
    inputs, outputs = set(inputs), set(outputs)
    for layout in LAYOUTS.values():
        if inputs == {layout.input} and {layout.outputs["logits"], layout.outputs["boxes"]} <= outputs:
            return layout
    return None


def read_interface(
    inputs: Mapping[str, Shape], outputs: Mapping[str, Shape], description: Mapping[str, Any], source: Any
) -> GraphInterface:
    """The interface from names and shapes; `description` is the one in the file.

    Raises:
        CheckpointError: the inputs and outputs are not those of a detector.
    """
    layout = layout_of(inputs, outputs)
    if layout is None:
        raise CheckpointError(_no_detector(inputs, outputs, source))
    shape = inputs[layout.input]
    batch, channels, height, width = shape if len(shape) == 4 else (None, None, None, None)
    if channels is None or height is None or width is None or min(height, width) < _SMALLEST_SIDE:
        raise CheckpointError(
            f"{source}: input {layout.input} is {_text(shape)}; expected [batch, channels, height, width] with fixed "
            "channels and a fixed height and width. Export it with a fixed input size."
        )
    logits = outputs[layout.outputs["logits"]]
    queries, classes = logits[1:] if len(logits) == 3 else (None, None)
    if classes is not None and description.get(ADDED_BACKGROUND) is True:
        classes -= 1
    return GraphInterface(layout, batch, (height, width), queries, classes, tuple(outputs), channels=channels)


def _no_detector(inputs: Mapping[str, Shape], outputs: Mapping[str, Shape], source: Any) -> str:
    contents = f"{source} has inputs {_listing(inputs)} and outputs {_listing(outputs)}"
    if FEATURES in outputs:
        return (
            f"{contents}: it was exported with export.backbone_only and has no detections. Export the whole detector."
        )
    known = " or ".join(
        f"input {layout.input} [batch, channels, height, width] and outputs "
        f"{layout.outputs['logits']}, {layout.outputs['boxes']} (layout {name})"
        for name, layout in LAYOUTS.items()
    )
    return f"{contents}; expected a detector with {known}, as written by `rtdetr export`, TAO and RF-DETR."


def _listing(shapes: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name} {_text(shape)}" for name, shape in shapes.items()) or "none"


def _text(shape: Shape) -> str:
    return "[" + ", ".join("?" if side is None else str(side) for side in shape) + "]"
