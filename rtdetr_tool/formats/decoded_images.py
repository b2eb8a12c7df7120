"""Detect objects in images that are already decoded: frames of a video, or images handed over in Python."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from rtdetr_tool.data.preprocess import prepare_image
from rtdetr_tool.data.tiles import Tiling, batch_of_tiles, tiled_sample
from rtdetr_tool.formats.base import Runtime
from rtdetr_tool.formats.detection_loop import LoopTimes, detect
from rtdetr_tool.ops.structures import Batch, Detections, Target


class Decoded(Protocol):
    """Anything with pixels."""

    @property
    def image(self) -> Tensor:
        """uint8 [C, H, W]."""
        ...


T = TypeVar("T", bound=Decoded)


def detect_decoded(
    runtime: Runtime,
    lists: Iterable[Sequence[T]],
    spatial_size: Sequence[int],
    preserve_aspect_ratio: bool,
    num_select: int,
    times: LoopTimes | None = None,
    name_of: Callable[[T], str] = lambda item: "",
    ahead: int | None = None,
    tiling: Tiling | None = None,
) -> Iterator[tuple[T, Detections]]:
    """Each item with its detections, in order; only the items of the running batches are kept.

    Args:
        lists: the items of each batch.
        name_of: what an item is called in errors.
        tiling: how images are cut into tiles; None = not at all.
        ahead: number of batches that may run while the next one is prepared; None = what is fastest.
    """
    running: deque[T] = deque()
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)

    def batches() -> Iterator[Batch]:
        for items in lists:
            running.extend(items)
            prepared = [prepare_image(item.image, spatial_size, preserve_aspect_ratio) for item in items]
            names = [name_of(item) for item in items]
            targets = [
                Target(*nothing, 0, one.original_size, one.box_scale, name)
                for one, name in zip(prepared, names, strict=True)
            ]
            if tiling is None:
                yield Batch(torch.stack([one.image for one in prepared]), targets)
                continue
            for item, target in zip(items, targets, strict=True):
                sample = tiled_sample(item.image, target, tiling, spatial_size, preserve_aspect_ratio)
                yield batch_of_tiles([sample], tiling)

    for _, results in detect(runtime, batches(), num_select, times, ahead):
        for detections in results:
            yield running.popleft(), detections
