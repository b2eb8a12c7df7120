"""Sliced inference: large images are cut into overlapping tiles, so that small objects are not resized away.

A tiled image goes through the same detection loop as any other: its `TiledBatch` consists of parts, which are batches
of tiles, and joins their detections into those of the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rtdetr_tool.data.collate import FailedImage, InferenceBatch, stack_images
from rtdetr_tool.data.preprocess import PreparedImage, prepare_image
from rtdetr_tool.ops.merging import merge_boxes
from rtdetr_tool.ops.structures import Batch, Detections, Target

CANDIDATES = 3_000  # detections per image that are merged, best first


@dataclass(frozen=True)
class Tiling:
    """How images are cut into tiles and how detections are merged.

    Args:
        size: (height, width) of a tile in pixels of the image.
        overlap: share of a tile that at least is in the next one, too.
        whole_image: detect in the whole image, too; it finds the objects that are larger than a tile.
        merge, threshold: see `ops.merging.merge_boxes`.
        batch_size: tiles per step.
    """

    size: tuple[int, int]
    overlap: float = 0.2
    whole_image: bool = True
    merge: str = "nms"
    threshold: float = 0.5
    batch_size: int = 1

    def corners(self, height: int, width: int) -> list[tuple[int, int]]:
        """(left, top) of each tile, row by row; no tile if the image fits into one."""
        if height <= self.size[0] and width <= self.size[1]:
            return []
        rows, columns = _starts(height, self.size[0], self.overlap), _starts(width, self.size[1], self.overlap)
        return [(left, top) for top in rows for left in columns]


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """Evenly spaced starts of tiles that cover `length` with at least this overlap."""
    if length <= tile:
        return [0]
    step = max(1, int(tile * (1 - overlap)))
    count = -(-(length - tile) // step) + 1
    return [round(index * (length - tile) / (count - 1)) for index in range(count)]


@dataclass
class TiledSample:
    """The tiles of one image."""

    images: list[Tensor]  # uint8 [C, H, W] each, at the network's size
    views: list[Target]  # one per tile, without objects: its size and box scale
    corners: list[tuple[int, int]]  # (left, top) of each tile
    target: Target  # of the whole image


def tiled_sample(
    image: Tensor, target: Target, tiling: Tiling, spatial_size: Sequence[int], preserve_aspect_ratio: bool
) -> TiledSample:
    """Cut a decoded image, uint8 [C, H, W]. An image that fits into a tile is one tile, the whole image."""
    height, width = image.shape[-2:]
    corners = tiling.corners(height, width)
    crops = [image[:, top : top + tiling.size[0], left : left + tiling.size[1]] for left, top in corners]
    if tiling.whole_image or not corners:
        crops, corners = [image, *crops], [(0, 0), *corners]
    prepared = [prepare_image(crop, spatial_size, preserve_aspect_ratio) for crop in crops]
    views = [_view(one, target) for one in prepared]
    return TiledSample([one.image for one in prepared], views, corners, target)


def _view(tile: PreparedImage, target: Target) -> Target:
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    return Target(*nothing, target.image_id, tile.original_size, tile.box_scale, target.path)


@dataclass
class TiledBatch(InferenceBatch):
    """Images with their tiles; `images` are the tiles of all of them."""

    views: list[Target] = field(default_factory=list)  # of each tile
    corners: list[tuple[int, int]] = field(default_factory=list)  # of each tile
    counts: list[int] = field(default_factory=list)  # tiles of each image
    tiling: Tiling | None = None

    def parts(self) -> list[Batch]:
        assert self.tiling is not None
        step = self.tiling.batch_size
        starts = range(0, max(1, len(self.views)), step)
        return [Batch(self.images[start : start + step], self.views[start : start + step]) for start in starts]

    def joined(self, detections: Sequence[Sequence[Detections]]) -> list[Detections]:
        """The detections of each image, from those of its tiles."""
        tiles = [one for part in detections for one in part]
        results, start = [], 0
        for count in self.counts:
            end = start + count
            results.append(self._merged(tiles[start:end], self.corners[start:end]))
            start = end
        return results

    def _merged(self, tiles: Sequence[Detections], corners: Sequence[tuple[int, int]]) -> Detections:
        if len(tiles) == 1:
            return tiles[0]
        assert self.tiling is not None
        shifts = [torch.tensor([*corner, *corner], dtype=torch.float32) for corner in corners]
        boxes = torch.cat([tile.boxes + shift for tile, shift in zip(tiles, shifts, strict=True)])
        scores, labels = torch.cat([tile.scores for tile in tiles]), torch.cat([tile.labels for tile in tiles])
        scores, order = scores.sort(descending=True, stable=True)
        scores, order = scores[:CANDIDATES], order[:CANDIDATES]
        boxes, kept = merge_boxes(boxes[order], scores, labels[order], self.tiling.merge, self.tiling.threshold)
        return Detections(boxes, scores[kept], labels[order][kept])


def collate_tiles(
    samples: Sequence[TiledSample | FailedImage], tiling: Tiling, shape: tuple[int, int, int], strict: bool
) -> TiledBatch | FailedImage:
    """A batch of the tiles of all readable images; `shape` [C, H, W] is that of the images of an empty batch.

    A machine fault, and with `strict` any failure, is returned alone, and the loader raises it.
    """
    failures = [sample for sample in samples if isinstance(sample, FailedImage)]
    for failure in failures:
        if strict or failure.ends_the_run:
            return failure
    good = [sample for sample in samples if isinstance(sample, TiledSample)]
    if not good:
        return TiledBatch(torch.zeros((0, *shape), dtype=torch.uint8), [], failures, tiling=tiling)
    return batch_of_tiles(good, tiling, failures)


def batch_of_tiles(samples: Sequence[TiledSample], tiling: Tiling, failures: Sequence[FailedImage] = ()) -> TiledBatch:
    """A batch of the tiles of at least one image."""
    return TiledBatch(
        stack_images([image for sample in samples for image in sample.images]),
        [sample.target for sample in samples],
        list(failures),
        [view for sample in samples for view in sample.views],
        [corner for sample in samples for corner in sample.corners],
        [len(sample.images) for sample in samples],
        tiling,
    )
