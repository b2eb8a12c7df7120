"""All records of a dataset in a few shared-memory tensors.

A Python list of records is copied into every worker process: page by page into forked workers, which update reference
counts, and as a whole into spawned workers. Shared tensors are passed by handle, so all workers read a single copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rtdetr_tool.data.records import ImageRecord


class SerializedRecords(Sequence[ImageRecord]):
    """A sequence of `ImageRecord` that unpacks one record at a time.

    Record i has the bytes `path_ends[i-1]:path_ends[i]` of `paths` and the objects `object_ends[i-1]:object_ends[i]`.
    Object j has the bytes `mask_ends[j]:mask_ends[j+1]` of `masks`, if there are masks.
    """

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        paths = [record.path.encode("utf-8", "surrogateescape") for record in records]
        self.paths = _bytes(paths)
        self.path_ends = _shared(np.cumsum([len(path) for path in paths], dtype=np.int64))
        self.images = _shared(np.array([(r.image_id, r.width, r.height) for r in records], np.int64).reshape(-1, 3))
        self.object_ends = _shared(np.cumsum([len(record) for record in records], dtype=np.int64))
        self.boxes = _shared(_joined((r.boxes for r in records), np.zeros((0, 4))))
        self.labels = _shared(_joined((r.labels for r in records), np.zeros(0, np.int64)))
        self.iscrowd = _shared(_joined((r.iscrowd for r in records), np.zeros(0, np.bool_)))
        self.area = _shared(_joined((r.area for r in records), np.zeros(0)))
        self.masks: Tensor | None = None
        self.mask_ends: Tensor | None = None
        if any(record.masks is not None for record in records):
            masks = [counts for record in records for counts in record.masks or [b""] * len(record)]
            self.masks = _bytes(masks)
            self.mask_ends = _shared(np.cumsum([0, *map(len, masks)], dtype=np.int64))  # one more than objects
        self.keypoints: Tensor | None = None
        poses = [record.keypoints for record in records if record.keypoints is not None]
        if poses:
            self.keypoints = _shared(_joined(poses, np.zeros((0, *poses[0].shape[1:]))))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ImageRecord:  # type: ignore[override]  # slices are not needed
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        text, objects = _span(self.path_ends, index), _span(self.object_ends, index)
        image_id, width, height = self.images[index].tolist()
        return ImageRecord(
            path=bytes(self.paths[text].numpy()).decode("utf-8", "surrogateescape"),
            image_id=image_id,
            width=width,
            height=height,
            boxes=self.boxes[objects].numpy(),
            labels=self.labels[objects].numpy(),
            iscrowd=self.iscrowd[objects].numpy(),
            area=self.area[objects].numpy(),
            masks=self._masks(objects),
            keypoints=None if self.keypoints is None else self.keypoints[objects].numpy(),
        )

    def _masks(self, objects: slice) -> list[bytes] | None:
        if self.masks is None or self.mask_ends is None:
            return None
        ends = self.mask_ends[objects.start : objects.stop + 1].tolist()
        return [bytes(self.masks[start:end].numpy()) for start, end in pairwise(ends)]

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self[index] for index in range(len(self)))

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors with data."""
        return [value for value in vars(self).values() if isinstance(value, Tensor)]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


def _shared(array: NDArray[Any]) -> Tensor:
    shared: Tensor = torch.from_numpy(np.ascontiguousarray(array)).share_memory_()
    return shared


def _bytes(texts: Sequence[bytes]) -> Tensor:
    """Concatenate; in a non-empty bytearray, because torch does not accept read-only or empty memory."""
    return _shared(np.frombuffer(bytearray(b"".join(texts)) or bytearray(1), dtype=np.uint8))


def _joined(arrays: Iterable[NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate(list(chain([empty], arrays)))


def _span(ends: Tensor, index: int) -> slice:
    return slice(int(ends[index - 1]) if index else 0, int(ends[index]))
