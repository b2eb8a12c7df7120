"""The `tiles` section of `evaluate` and `inference`: sliced inference for large images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rtdetr_tool.spec.fields import field


@dataclass(frozen=True)
class TilesSpec:
    """Cut large images into overlapping tiles, detect in each, and merge the detections."""

    enabled: bool = field(False, "Detect in tiles.", origin="ours")
    size: list[int] | None = field(
        None,
        "Height and width of a tile in pixels of the image; null = the input size of the model.",
        min=16,
        unit="pixels",
        origin="ours",
    )
    overlap: float = field(
        0.2,
        "Share of a tile that neighbors have in common, at least; an object should fit into it.",
        min=0.0,
        max=0.9,
        origin="ours",
    )
    whole_image: bool = field(
        True, "Also detect in the whole image, for objects that are larger than a tile.", origin="ours"
    )
    merge: str = field(
        "nms",
        "nms drops boxes of the same class by IoU; nmm joins them by the overlap relative to the smaller one, which "
        "also joins the parts of an object that a tile has cut.",
        options=("nms", "nmm"),
        origin="ours",
    )
    threshold: float = field(
        0.5, "Overlap above which two boxes of a class are one object.", min=0.0, max=1.0, origin="ours"
    )


def tiles_problems(tiles: TilesSpec, name: str) -> Iterator[str]:
    """What is wrong with a `tiles` section."""
    if tiles.size is not None and len(tiles.size) != 2:
        yield f"{name}.size: expected 2 items, height and width, but got {len(tiles.size)}"
