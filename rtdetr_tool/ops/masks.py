"""Masks of objects: COCO's run lengths, outlines made into pixels, and predicted masks at the size of their image.

A mask travels as compressed run lengths (`counts`, as bytes): the pixels column by column, which COCO's tools and
hotcoco read. Empty bytes stand for a mask that is not known. hotcoco's functions are equal to pycocotools' and, other
than those, survive damaged input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import hotcoco.mask as coco_mask
import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rtdetr_tool.ops.structures import InstanceMasks

UNKNOWN = b""
_CHUNK = 2**25  # pixels that are made at a time
_REACH = 2.0  # an outline may leave its image by twice its sides, and no further


def encode(mask: NDArray) -> bytes:
    """Counts of a mask [H, W], bool or 0 and 1."""
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]


def decode(counts: bytes, height: int, width: int) -> NDArray[np.uint8]:
    """The mask [H, W] of 0 and 1; all 0 where it is not known."""
    if counts == UNKNOWN:
        return np.zeros((height, width), np.uint8)
    return coco_mask.decode({"size": [height, width], "counts": counts})


def rasterise(outlines: Sequence[Sequence[float]], height: int, width: int) -> bytes | None:
    """Counts of the union of outlines, each x1, y1, x2, y2, ... in pixels; None if they are none or hold no pixel."""
    size = np.array([width, height], dtype=np.float64)
    kept = []
    for outline in outlines:
        points = _numbers(outline)
        if points is None or len(points) < 6 or len(points) % 2:
            return None
        pairs = points.reshape(-1, 2)
        if not (np.abs(pairs - size / 2) <= (0.5 + _REACH) * size).all():  # nor what is not finite
            return None
        kept.append(points.tolist())
    return _unless_empty(coco_mask.merge(coco_mask.fr_py_objects(kept, height, width))) if kept else None


def compact(segmentation: Any) -> Any:
    """COCO's `segmentation` in a tenth of the memory of parsed JSON; what is neither outlines nor run lengths stays."""
    if isinstance(segmentation, list):
        arrays = [_numbers(outline) for outline in segmentation]
        return segmentation if any(array is None for array in arrays) else arrays
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
        try:
            return coco_mask.fr_py_objects(segmentation, *segmentation["size"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return segmentation
    return segmentation


def counts_of(segmentation: Any, height: int, width: int) -> bytes | None:
    """Counts of COCO's `segmentation` (outlines, or run lengths as numbers or as text).

    None where it cannot be read or holds no pixel. Run lengths must be those of an image of this size.
    """
    if isinstance(segmentation, list):
        return rasterise(segmentation, height, width)
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        return None
    try:
        # decoding is what finds run lengths that do not add up
        return _unless_empty(coco_mask.encode(coco_mask.decode(coco_mask.fr_py_objects(segmentation, height, width))))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _unless_empty(rle: dict[str, Any]) -> bytes | None:
    return rle["counts"] if coco_mask.area(rle) else None


def _numbers(values: Any) -> NDArray[np.float64] | None:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return array if array.ndim == 1 else None


def pixels_of(masks: InstanceMasks) -> Iterator[Tensor]:
    """Bool [k, H, W] on the CPU at the size of the original image, some masks at a time.

    The logits are interpolated, padding is cut away, and what is above 0 belongs to the object.
    """
    height, width = masks.size
    step = max(1, _CHUNK // (masks.canvas[0] * masks.canvas[1]))
    for part in masks.query.split(step):
        logits = masks.logits[part][:, None].float()
        full = F.interpolate(logits, size=masks.canvas, mode="bilinear", align_corners=False)
        yield (full[:, 0, :height, :width] > 0).cpu()


def encode_masks(masks: InstanceMasks) -> list[bytes]:
    """Counts of each mask at the size of the original image."""
    distinct, order = masks.query.unique(return_inverse=True)
    each = [encode(mask.numpy()) for part in pixels_of(replace(masks, query=distinct)) for mask in part]
    return [each[index] for index in order.tolist()]


def to_coco(counts: bytes, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's `segmentation`, as JSON takes it; `size` is (height, width)."""
    return {"size": list(size), "counts": counts.decode("ascii")}
