"""Detect objects in images and videos one after another, for `Detector.predict` and `Detector.predict_video`."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from numbers import Real
from typing import Any, TypeVar

from torch import Tensor

from rtdetr_tool.api.images import to_pixels
from rtdetr_tool.api.results import result_of
from rtdetr_tool.data.pixels import RGB, PixelFormat
from rtdetr_tool.data.read_ahead import ReadAhead
from rtdetr_tool.data.video import VideoFrame, VideoReader
from rtdetr_tool.data.video_formats import VideoSource
from rtdetr_tool.errors import DataError, UserError, nearest_multiples
from rtdetr_tool.formats.base import Runtime
from rtdetr_tool.formats.decoded_images import Decoded, detect_decoded
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Detections

T = TypeVar("T", bound=Decoded)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """How to predict: what is the same for all images of a call."""

    runtime: Runtime
    class_map: ClassMap | None
    shape: tuple[int, int]  # (height, width)
    preserve_aspect_ratio: bool
    num_select: int
    threshold: float
    include_source_image: bool
    batch_size: int
    pixels: PixelFormat = RGB

    def of_images(self, images: Iterable[Any], total: int | None, ahead: int | None = None) -> Iterator[Any]:
        """The result of each image, in order; images are taken and decoded when their batch runs."""
        inputs = _decoded(images, total, self.pixels)
        for item, detections in self._detect(iter(lambda: list(islice(inputs, self.batch_size)), []), _path_of, ahead):
            yield self._result(item.image, detections)

    def of_video(self, source: VideoSource) -> Iterator[tuple[VideoFrame, Any]]:
        """Each frame with its result; what was wrong with the video is logged at the end."""

        def name_of(frame: VideoFrame) -> str:
            return f"{source.shown}, frame {frame.index}"

        with VideoReader(source) as reader:
            with ReadAhead(reader, 2 * self.batch_size, drop=source.live) as frames:
                lists = frames.lists(self.batch_size, wait=not source.live)
                for frame, detections in self._detect(lists, name_of, None):
                    yield frame, self._result(frame.image, detections)
            for problem in reader.problems:
                logger.warning("%s", problem)

    def _detect(
        self, lists: Iterable[list[T]], name_of: Callable[[T], str], ahead: int | None
    ) -> Iterator[tuple[T, Detections]]:
        return detect_decoded(
            self.runtime, lists, self.shape, self.preserve_aspect_ratio, self.num_select, name_of=name_of, ahead=ahead
        )

    def _result(self, image: Tensor, detections: Detections) -> Any:
        size = image.shape[-2], image.shape[-1]
        source = image.permute(1, 2, 0).numpy() if self.include_source_image else None
        return result_of(detections.above(self.threshold), self.class_map, size, source)


def is_lazy(images: Any) -> bool:
    """Whether results must be returned one by one, because the images are an iterator (an open file is not)."""
    return isinstance(images, Iterator) and not isinstance(images, io.IOBase)


def check_threshold(method: str, threshold: Any) -> float:
    if not (isinstance(threshold, Real) and 0 <= float(threshold) <= 1):
        raise UserError(f"{method}: threshold {threshold!r} is invalid; expected 0 to 1")
    return float(threshold)


def check_shape(shape: Any, runtime: Runtime, multiple: int, source: str) -> tuple[int, int]:
    """The requested (height, width); UserError if the detector does not support it."""
    pair = isinstance(shape, (tuple, list)) and len(shape) == 2
    if not pair or not all(isinstance(side, int) and side > 0 for side in shape):
        raise UserError(f"shape: {shape!r} is invalid; expected (height, width) in pixels")
    height, width = shape
    fixed = runtime.input_size
    if fixed is not None and (height, width) != fixed:
        raise UserError(f"shape: {source} only supports inputs of {fixed[0]} x {fixed[1]} (height x width)")
    for side in (height, width):
        if side % multiple:
            near = nearest_multiples(side, multiple)
            raise UserError(f"shape: {side} is invalid; expected a multiple of {multiple}, nearest: {near}")
    return height, width


def check_batch_size(method: str, batch_size: Any) -> int:
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise UserError(f"{method}: batch_size {batch_size!r} is invalid; expected an integer of at least 1")
    return batch_size


@dataclass
class _Decoded:
    image: Tensor
    path: str


def _path_of(item: _Decoded) -> str:
    return item.path


def _decoded(images: Iterable[Any], total: int | None, form: PixelFormat) -> Iterator[_Decoded]:
    for index, image in enumerate(images):
        try:
            pixels = to_pixels(image, form)
        except UserError as error:
            kind = type(error) if isinstance(error, DataError) else DataError
            of = "" if total is None else f" of {total}"
            raise kind(f"Image {index}{of}: {error}" if total != 1 else str(error)) from error
        yield _Decoded(pixels, os.fspath(image) if isinstance(image, (str, os.PathLike)) else "")
