"""Instance masks: COCO run lengths, polygon rasterization, and predicted masks at image size.

A mask is passed around as compressed run lengths (`counts`, bytes), column by column, as in COCO. Empty bytes mean that
the mask is unknown. hotcoco computes the same as pycocotools and, unlike it, does not crash on corrupted input.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import hotcoco.mask as coco_mask
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rtdetr_tool.ops.structures import InstanceMasks

UNKNOWN = b""
_CHUNK = 2**25  # pixels computed at a time
_PACKED = 2**28  # bytes of packed masks read from a GPU at a time; 90 images with 100 masks at 640 x 480
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
    return (pixels.cpu() for pixels in _resized(masks))


def encode_masks(masks: InstanceMasks) -> list[bytes]:
    """Run lengths of each mask at the size of the original image."""
    return encode_batch([masks])[0]


def encode_batch(batch: Sequence[InstanceMasks]) -> list[list[bytes]]:
    """Run lengths of each mask of several images. The host waits once for a GPU, or once per `_PACKED` bytes."""
    distinct = [masks.query.cpu().unique(return_inverse=True) for masks in batch]
    reads = (
        _start_reading(pixels)
        for masks, (query, _) in zip(batch, distinct, strict=True)
        for pixels in _resized(replace(masks, query=query))
    )
    encoded = _encoded(reads)
    results = []
    for query, order in distinct:
        of_image = [next(encoded) for _ in range(len(query))]
        results.append([of_image[index] for index in order.tolist()])
    return results


def _resized(masks: InstanceMasks) -> Iterator[Tensor]:
    """As `pixels_of`, on the device of the logits."""
    height, width = masks.size
    step = max(1, _CHUNK // (masks.canvas[0] * masks.canvas[1]))
    for part in masks.query.split(step):
        logits = masks.logits[part.to(masks.logits.device, non_blocking=True)][:, None].float()
        full = F.interpolate(logits, size=masks.canvas, mode="bilinear", align_corners=False)
        yield full[:, 0, :height, :width] > 0


class _Reading(NamedTuple):
    """Masks on their way to the host: bool [k, H, W], or bits [k, W, ceil(H / 8)] that a GPU is still copying."""

    values: Tensor
    height: int
    copied: torch.cuda.Event | None

    def arrays(self) -> NDArray[Any]:
        """[k, H, W] of 0 and 1; call after the copy."""
        if self.copied is None:
            return self.values.numpy()
        columns = np.unpackbits(self.values.numpy(), axis=-1, count=self.height)
        return columns.transpose(0, 2, 1)  # column by column, as run lengths are


def _start_reading(pixels: Tensor) -> _Reading:
    """Masks on the CPU as they are; those on a GPU are packed there, eight pixels of a column to a byte."""
    height = pixels.shape[1]
    if not pixels.is_cuda:
        return _Reading(pixels, height, None)
    columns = F.pad(pixels.transpose(1, 2).to(torch.uint8), (0, -height % 8)).unflatten(-1, (-1, 8))
    bits = columns << torch.arange(7, -1, -1, device=pixels.device, dtype=torch.uint8)
    packed = bits.sum(-1, dtype=torch.uint8)
    host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True).copy_(packed, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return _Reading(host, height, copied)


def _encoded(reads: Iterable[_Reading]) -> Iterator[bytes]:
    """Run lengths in order. On a GPU, up to `_PACKED` bytes are on their way before the host waits for them."""
    started: list[_Reading] = []
    reads, remaining = iter(reads), _PACKED
    while True:
        read = next(reads, None)
        if read is not None:
            started.append(read)
            remaining -= read.values.numel()
        if started and (read is None or read.copied is None or remaining <= 0):
            if (last := started[-1].copied) is not None:
                last.synchronize()
            yield from (encode(mask) for chunk in started for mask in chunk.arrays())
            started, remaining = [], _PACKED
        if read is None:
            return


def to_coco(counts: bytes, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's `segmentation` entry for JSON; `size` is (height, width)."""
    return {"size": list(size), "counts": counts.decode("ascii")}
