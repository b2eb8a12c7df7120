"""Keep decoded images in memory or in a temporary file, shared by all worker processes (`dataset.cache`).

The cache is an unlinked file, in `/dev/shm` or in the folder of temporary files, so it disappears with the run however
that ends. It never exceeds its limit: images that no longer fit are decoded every time, because with a random order
replacing others would not help.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rtdetr_tool.data.decoding import decode_image
from rtdetr_tool.data.pixels import RGB, PixelFormat
from rtdetr_tool.errors import DataError
from rtdetr_tool.messages import first_line

logger = logging.getLogger(__name__)

_MEMORY = Path("/dev/shm")
_SHARE_OF_MEMORY = 0.5  # of the free space, because the batches of the workers are there, too
_NOWHERE = -1


class ImageCache:
    """Decoded images by their index in a dataset. An image is decoded again if its file has changed.

    Args:
        kind: `ram` or `disk`.
        limit: bytes.
        count: number of images of the dataset.
        pixels: what images are decoded to.

    Raises:
        DataError: the cache cannot be created.
    """

    def __init__(self, kind: str, limit: int, count: int, pixels: PixelFormat = RGB) -> None:
        folder = _MEMORY if kind == "ram" else Path(tempfile.gettempdir())
        if not (Path("/proc/self/fd").is_dir() and folder.is_dir()):
            raise DataError(f"dataset.cache: {kind} is not supported on this system; use none")
        if kind == "ram":
            limit = min(limit, int(shutil.disk_usage(folder).free * _SHARE_OF_MEMORY))
        try:
            self._file: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # open as long as the cache
        except OSError as error:
            raise DataError(f"dataset.cache: {kind}: cannot create a file in {folder}: {first_line(error)}") from error
        self._path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"  # for processes that do not inherit the file
        self._limit, self.pixels = limit, pixels
        self._entries = torch.full((count, 5), _NOWHERE).share_memory_()  # offset, height, width, mtime, file size
        self._used = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._lock = multiprocessing.Lock()
        logger.info("Caching decoded images in %s: up to %.1f GB per process", folder, limit / 1e9)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def read(self, index: int, path: str, declared_size: tuple[int, int] | None) -> Tensor:
        """As `decode_image` for the image with this index."""
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return decode_image(path, declared_size, self.pixels)  # which explains the error
        identity = [status.st_mtime_ns, status.st_size]
        offset, height, width, *known = self._entries[index].tolist()
        if offset != _NOWHERE and known == identity:
            pixels = np.empty((height, width, self.pixels.channels), np.uint8)
            if os.preadv(self._descriptor(), [pixels.data], offset) == pixels.nbytes:
                return torch.from_numpy(pixels).permute(2, 0, 1)
        image = decode_image(path, declared_size, self.pixels)
        self._store(index, image, identity)
        return image

    def _store(self, index: int, image: Tensor, identity: list[int]) -> None:
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        with self._lock:
            offset = int(self._used)
            if offset + pixels.nbytes > self._limit:
                return
            self._used += pixels.nbytes
        try:
            written = os.pwrite(self._descriptor(), pixels.data, offset)
        except OSError as error:
            self._used[0] = self._limit  # no further attempts
            logger.warning("Caching no more images: %s", first_line(error))
            return
        if written == pixels.nbytes:
            self._entries[index, 0] = _NOWHERE  # other processes must not see half an entry
            self._entries[index, 1:] = torch.tensor([*pixels.shape[:2], *identity])
            self._entries[index, 0] = offset

    def _descriptor(self) -> int:
        if self._file is None:
            self._file = open(self._path, "r+b", buffering=0)  # noqa: SIM115  # open as long as the cache
        descriptor: int = self._file.fileno()
        return descriptor
