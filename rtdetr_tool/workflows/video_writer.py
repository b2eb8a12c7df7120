"""Write the results of a video: the annotated video and a file with one line of JSON per frame.

A thread of its own draws and encodes. Both files appear under their names when the video is finished, which is also
after an interruption: they then contain the frames up to it.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from rtdetr_tool.data.video import VideoFrame
from rtdetr_tool.data.video_container import av_library
from rtdetr_tool.errors import RtdetrError, WriteError
from rtdetr_tool.files import replacing
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Detections
from rtdetr_tool.visualize import Color, draw_detections, skeletons_of
from rtdetr_tool.workflows.kitti import coco_rows

logger = logging.getLogger(__name__)

Tracks = list[int | None] | None  # the id of each detection; None without a tracker

_CODECS = ("libx264", "libopenh264", "h264_videotoolbox", "mpeg4")  # the first that this build of FFmpeg has
_BT709 = 1  # color matrix of HD video; what players assume


class Encoder:
    """An MP4 file with H.264 video in 4:2:0, which every player supports.

    Sides are even in this format: an odd width or height gets one more column or row, a copy of the last one. Frames
    keep their times, so a variable frame rate stays one.
    """

    def __init__(
        self, path: Path, size: tuple[int, int], fps: Fraction | None, time_base: Fraction, aspect_ratio: Fraction
    ) -> None:
        av = av_library()
        self.size = size  # (height, width)
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        codec = next(name for name in _CODECS if name in av.codecs_available)
        self._stream = self._container.add_stream(codec, rate=fps or 25)
        self._stream.height, self._stream.width = (side + side % 2 for side in size)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = time_base
        self._stream.codec_context.colorspace = _BT709
        self._stream.codec_context.color_range = 1
        if aspect_ratio != 1:
            self._stream.codec_context.sample_aspect_ratio = aspect_ratio
        self._step = max(1, round(1 / ((fps or 25) * time_base)))
        if codec == "libx264":
            self._stream.options = {"preset": "veryfast", "crf": "20"}
        elif codec == "mpeg4":
            self._stream.bit_rate = max(1_000_000, size[0] * size[1] * 4)
            logger.warning(
                "This build of FFmpeg has no H.264 encoder; writing MPEG-4 video, which browsers do not play"
            )
        self._time_base = time_base

    def write(self, image: np.ndarray[Any, Any], pts: int) -> None:
        """Add a frame, uint8 RGB [H, W, 3]."""
        height, width = self.size
        if height % 2 or width % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av_library().VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=_BT709, dst_color_range=1)
        frame.pts, frame.time_base = pts, self._time_base
        self._mux(self._stream.encode(frame))

    def close(self) -> None:
        self._mux(self._stream.encode(None))
        self._container.close()

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            if not packet.duration:
                packet.duration = self._step  # of the last frame
            self._container.mux(packet)


class VideoWriter:
    """Writes frames with their detections in another thread, in order.

    Args:
        video, lines: the two files.
        fps, time_base, aspect_ratio: of the source.
        colors, outline_width, labels: of `draw_detections`.
        waiting: number of frames that may wait for the thread.

    After `finish`, `frames` and `detections` count what has been written.
    """

    def __init__(
        self,
        video: Path,
        lines: Path,
        class_map: ClassMap,
        fps: Fraction | None,
        time_base: Fraction,
        aspect_ratio: Fraction = Fraction(1),
        colors: Mapping[str, Color] | None = None,
        outline_width: int = 3,
        labels: bool = True,
        waiting: int = 8,
    ) -> None:
        self.video, self.lines, self.class_map = video, lines, class_map
        self.frames = self.detections = 0
        self._timing = fps, time_base, aspect_ratio
        self._draw = partial(draw_detections, colors=colors, outline_width=outline_width, labels=labels,
                             skeletons=skeletons_of(class_map))  # fmt: skip
        self._queue: queue.Queue[tuple[VideoFrame, Detections, Tracks] | None] = queue.Queue(waiting)
        self._error: BaseException | None = None
        self._resized = False
        self._thread = threading.Thread(target=self._run, name="video writer", daemon=True)
        self._thread.start()

    def write(self, frame: VideoFrame, detections: Detections, tracks: Tracks = None) -> None:
        """Queue a frame. Raises what the thread has raised."""
        while self._error is None:
            try:
                return self._queue.put((frame, detections, tracks), timeout=0.2)
            except queue.Full:
                continue
        self._raise()

    def finish(self) -> None:
        """Wait until all queued frames are written and both files have their names; no frames, no files."""
        while self._thread.is_alive() and self._error is None:
            try:
                self._queue.put(None, timeout=0.2)
                break
            except queue.Full:
                continue
        self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if isinstance(self._error, OSError) and not isinstance(self._error, RtdetrError):
            raise WriteError(f"{self.video} cannot be written: {self._error.strerror or self._error}") from self._error
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            if (item := self._queue.get()) is None:
                return
            with ExitStack() as stack:
                video, lines = stack.enter_context(replacing(self.video)), stack.enter_context(replacing(self.lines))
                size = item[0].image.shape[-2:]
                encoder = Encoder(video, (size[0], size[1]), *self._timing)
                with open(lines, "w", encoding="utf-8") as stream:
                    while item is not None:
                        self._write(encoder, stream, *item)
                        item = self._queue.get()
                encoder.close()
        except BaseException as error:
            self._error = error

    def _write(
        self, encoder: Encoder, stream: TextIO, frame: VideoFrame, detections: Detections, tracks: Tracks
    ) -> None:
        stream.write(json.dumps(frame_line(frame, detections, tracks, self.class_map)) + "\n")
        image = Image.fromarray(np.ascontiguousarray(frame.image.permute(1, 2, 0).numpy()))
        prefixes = None if tracks is None else ["" if number is None else f"#{number} " for number in tracks]
        drawn = self._draw(image, detections, self.class_map.name_of, prefixes=prefixes)
        if (drawn.height, drawn.width) != encoder.size:
            if not self._resized:
                self._resized = True
                logger.warning(
                    "%s: the frame size changes from %dx%d to %dx%d at frame %d; keeping the first size",
                    self.video.name, encoder.size[1], encoder.size[0], drawn.width, drawn.height, frame.index,
                )  # fmt: skip
            drawn = drawn.resize((encoder.size[1], encoder.size[0]))
        encoder.write(np.asarray(drawn), frame.pts)
        self.frames += 1
        self.detections += len(detections)


def frame_line(frame: VideoFrame, detections: Detections, tracks: Tracks, class_map: ClassMap) -> dict[str, Any]:
    """The JSON object of a frame: its number, its time in seconds, its size and its detections as in COCO results."""
    height, width = frame.image.shape[-2:]
    rows: list[dict[str, Any]] = [{**row} for row in coco_rows(detections, class_map)]
    for row, number in zip(rows, tracks or (), strict=tracks is not None):
        row["track_id"] = number
    return {
        "frame": frame.index,
        "time": round(frame.time, 6),
        "width": width,
        "height": height,
        "detections": rows,
    }
