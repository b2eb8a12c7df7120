"""Instance masks: COCO run lengths, polygon rasterization, and predicted masks at image size.

A mask is passed around as compressed run lengths (`counts`, bytes), column by column, as in COCO. Empty bytes mean that
the mask is unknown. hotcoco computes the same as pycocotools and, unlike it, does not crash on corrupted input.
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
_CHUNK = 2**25  # pixels computed at a time
_REACH = 2.0  # a polygon may extend beyond its image by at most twice the image's sides


def encode(mask: NDArray[Any]) -> bytes:
    """Run lengths of a mask [H, W], bool or 0 and 1."""
    counts: bytes = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts


def decode(counts: bytes, height: int, width: int) -> NDArray[np.uint8]:
    """The mask [H, W] of 0 and 1; all 0 if it is unknown."""
    if counts == UNKNOWN:
        return np.zeros((height, width), np.uint8)
    return coco_mask.decode({"size": [height, width], "counts": counts})


def rasterize(outlines: Sequence[Sequence[float]], height: int, width: int) -> bytes | None:
    """Run lengths of the union of polygons, each x1, y1, x2, y2, ... in pixels; None if invalid or empty."""
    size = np.array([width, height], dtype=np.float64)
    kept = []
    for outline in outlines:
        points = _numbers(outline)
        if points is None or len(points) < 6 or len(points) % 2:
            return None
        pairs = points.reshape(-1, 2)
        if not (np.abs(pairs - size / 2) <= (0.5 + _REACH) * size).all():  # also false for NaN and infinity
            return None
        kept.append(points.tolist())
    return _unless_empty(coco_mask.merge(coco_mask.fr_py_objects(kept, height, width))) if kept else None


def compact(segmentation: Any) -> Any:
    """COCO's `segmentation` in a tenth of the memory of parsed JSON; anything else is returned unchanged."""
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
    """Run lengths of COCO's `segmentation` (polygons, or run lengths as numbers or as text).

    None if it is invalid or empty. Run lengths must have this image size.
    """
    if isinstance(segmentation, list):
        return rasterize(segmentation, height, width)
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        return None
    try:
        # Decoding detects run lengths that do not add up to the image size.
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
    """Yield masks, bool [k, H, W] on CPU, at the size of the original image, a chunk at a time.

    Logits are interpolated and padding is cropped; a pixel with a logit above 0 belongs to the object.
    """
    height, width = masks.size
    step = max(1, _CHUNK // (masks.canvas[0] * masks.canvas[1]))
    for part in masks.query.split(step):
        logits = masks.logits[part][:, None].float()
        full = F.interpolate(logits, size=masks.canvas, mode="bilinear", align_corners=False)
        yield (full[:, 0, :height, :width] > 0).cpu()


def encode_masks(masks: InstanceMasks) -> list[bytes]:
    """Run lengths of each mask at the size of the original image."""
    distinct, order = masks.query.unique(return_inverse=True)
    encoded = [encode(mask.numpy()) for chunk in pixels_of(replace(masks, query=distinct)) for mask in chunk]
    return [encoded[index] for index in order.tolist()]


def to_coco(counts: bytes, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's `segmentation` entry for JSON; `size` is (height, width)."""
    return {"size": list(size), "counts": counts.decode("ascii")}
