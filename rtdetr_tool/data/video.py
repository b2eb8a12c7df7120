"""Decode videos with PyAV: files, network streams and cameras, as upright RGB frames with their times.

Damaged parts are skipped and counted; a file that ends early gives the frames before. What was wrong is in
`VideoReader.problems` when the frames have ended.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rtdetr_tool.data.decoding import MAX_PIXELS
from rtdetr_tool.data.video_container import av_library, open_container, reason_of, require_video
from rtdetr_tool.data.video_formats import VideoSource
from rtdetr_tool.errors import DataError

logger = logging.getLogger(__name__)

TICKS = 90_000  # per second, of live sources
_LONGEST_PAUSE = 10.0  # seconds between attempts to connect
_TOLERANCE = 1.0  # seconds that a complete file without a frame count may be shorter than its header says


@dataclass
class VideoFrame:
    """A decoded frame, rotated upright."""

    index: int  # from 0
    time: float  # seconds since the start of the video, or since the first frame of a live source
    pts: int  # the same time in units of the reader's `time_base`
    image: Tensor  # uint8 RGB [3, H, W]


class VideoReader:
    """An opened source; iterate over it once. Use it as a context manager.

    Args:
        attempts: how often in a row a live source may be opened again after it was lost.

    Raises:
        DataError: it is missing, cannot be opened, or has no video.
    """

    def __init__(self, source: VideoSource, attempts: int = 5) -> None:
        require_video()
        self.source, self.attempts = source, attempts
        self.problems: list[str] = []
        self.decoded = 0
        self._closed = self._iterating = False
        self._container, self._stream = open_container(self.source)
        self.fps: Fraction | None = self._stream.average_rate or self._stream.guessed_rate
        self.time_base = Fraction(1, TICKS) if source.live else self._stream.time_base
        self.aspect_ratio: Fraction = self._stream.sample_aspect_ratio or Fraction(1)  # of a pixel as it is stored
        self.total_frames = None if source.live else self._expected_frames()  # by the header; None if unknown
        self.turned = False  # whether width and height were swapped; known after the first frame

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        if not self._iterating:
            self._container.close()

    def __iter__(self) -> Iterator[VideoFrame]:
        self._iterating = True
        try:
            yield from self._live_frames() if self.source.live else self._file_frames()
        finally:
            self._iterating = False
            if self._closed:  # by the consumer, while another thread was decoding
                self._container.close()

    # Files

    def _file_frames(self) -> Iterator[VideoFrame]:
        start = Fraction(self._container.start_time or 0, 1_000_000)
        first = round(start / self.time_base)
        step = round(1 / (self.fps or 25) / self.time_base) or 1
        packets, damaged, last, end = _Counter(), 0, -step, Fraction(0)
        try:
            for frame in self._decoded(packets):
                damaged += bool(frame.is_corrupt)
                pts = last + step if frame.pts is None else frame.pts - first
                pts = max(pts, last + 1, 0)  # times increase, whatever a damaged file claims
                last, end = pts, (pts + (frame.duration or step)) * self.time_base
                yield self._frame(frame, pts)
        except av_library().error.FFmpegError as error:
            self._add_problem(f"{self.source.shown} can be read only up to {float(end):.2f} s: {reason_of(error)}")
            return
        if self._closed:
            return
        damaged += packets.undecodable
        expected, declared = self._expected_seconds(), self._stream.frames
        if declared and packets.read < declared:
            self._add_problem(
                f"{self.source.shown} is truncated: its header states {declared} frames, but the file ends after "
                f"{packets.read}"
            )
        elif not declared and expected and end + _TOLERANCE < expected:
            self._add_problem(
                f"{self.source.shown} is truncated or damaged: its header states {float(expected):.2f} s, but the "
                f"last frame that can be read ends at {float(end):.2f} s"
            )
        if damaged:
            self._add_problem(f"{self.source.shown} is damaged: {damaged} of its frames cannot be decoded correctly")
        if not self.decoded and not self.problems:
            self._add_problem(f"{self.source.shown} contains no frames")

    def _expected_frames(self) -> int | None:
        expected = self._expected_seconds()
        return self._stream.frames or (round(expected * self.fps) if expected and self.fps else None)

    def _expected_seconds(self) -> Fraction | None:
        """The length of the video stream by the file's header."""
        stream, container = self._stream, self._container
        if stream.duration:
            return Fraction(stream.duration * stream.time_base)
        for name, value in stream.metadata.items():  # Matroska
            if name.upper().startswith("DURATION") and (seconds := _clock_seconds(value)) is not None:
                return seconds - Fraction(container.start_time or 0, 1_000_000)
        alone = len(container.streams) == 1
        return Fraction(container.duration, 1_000_000) if alone and container.duration else None

    # Streams and cameras

    def _live_frames(self) -> Iterator[VideoFrame]:
        begin: float | None = None
        failed, last = 0, -1
        while True:
            reason = "it ended"
            try:
                first: Fraction | None = None
                for frame in self._decoded(_Counter()):
                    now = time.monotonic()
                    begin = now if begin is None else begin
                    stamp = Fraction(frame.pts * frame.time_base) if frame.pts is not None else Fraction(now)
                    if first is None:
                        first = stamp - Fraction(now - begin)
                        failed = 0
                    last = max(round((stamp - first) * TICKS), last + 1)
                    yield self._frame(frame, last)
            except (av_library().error.FFmpegError, OSError) as error:
                reason = reason_of(error)
            while not self._closed:
                failed += 1
                if failed > self.attempts:
                    self._add_problem(f"{self.source.shown} was lost after {self.decoded} frames: {reason}")
                    return
                pause = min(_LONGEST_PAUSE, 2.0 ** (failed - 1) / 2)
                logger.warning(
                    "%s was lost (%s); connecting again in %.1f s (attempt %d of %d)",
                    self.source.shown, reason, pause, failed, self.attempts,
                )  # fmt: skip
                time.sleep(pause)
                try:
                    self._container.close()
                    self._container, self._stream = open_container(self.source)
                    break
                except DataError as error:
                    reason = reason_of(error.__cause__ or error)
            if self._closed:
                return

    # Both

    def _decoded(self, packets: _Counter) -> Iterator[Any]:
        """PyAV's frames in order of presentation; packets that cannot be decoded are counted and skipped."""
        for packet in self._container.demux(self._stream):
            if self._closed:
                return
            packets.read += packet.size > 0
            try:
                frames = packet.decode()
            except av_library().error.InvalidDataError:
                packets.undecodable += 1
                continue
            yield from frames

    def _frame(self, frame: Any, pts: int) -> VideoFrame:
        if frame.width * frame.height > MAX_PIXELS:
            raise DataError(
                f"{self.source.shown}: a frame of {frame.width}x{frame.height} is above {MAX_PIXELS} pixels"
            )
        pixels = frame.to_ndarray(format="rgb24")
        quarters = round(frame.rotation / 90) % 4
        self.turned = quarters % 2 == 1
        if quarters:
            pixels = np.rot90(pixels, quarters)
        image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
        index, self.decoded = self.decoded, self.decoded + 1
        return VideoFrame(index, float(pts * self.time_base), pts, image)

    def _add_problem(self, text: str) -> None:
        self.problems.append(text)


@dataclass
class _Counter:
    read: int = 0
    undecodable: int = 0


def _clock_seconds(text: str) -> Fraction | None:
    """`00:01:02.5` in seconds."""
    try:
        hours, minutes, seconds = text.strip().rstrip("\0").split(":")
        return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    except ValueError:
        return None
