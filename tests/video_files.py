"""Videos drawn frame by frame: a red square moves right, and a green one is present in some frames only."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rtdetr_tool.ops.classes import ClassEntry, ClassMap
from rtdetr_tool.ops.structures import Predictions

CLASSES = ClassMap([ClassEntry(0, 1, "red"), ClassEntry(1, 2, "green")])
COLORS = {0: (250, 20, 20), 1: (20, 250, 20)}
BOXES = 16  # side of a square
GREEN = range(20, 40)  # frames with the green square


def squares_at(index: int, size: tuple[int, int] = (96, 64)) -> dict[int, tuple[int, int, int, int]]:
    """Class index -> box (xyxy pixels) of each square in frame `index`; `size` is (width, height)."""
    left = 4 + index % (size[0] - BOXES - 8)
    boxes = {0: (left, 8, left + BOXES, 8 + BOXES)}
    if index in GREEN:
        boxes[1] = (40, 40, 40 + BOXES, 40 + BOXES)
    return boxes


def draw_frame(index: int, size: tuple[int, int] = (96, 64)) -> np.ndarray:
    """uint8 RGB [H, W, 3]."""
    pixels = np.full((size[1], size[0], 3), 90, np.uint8)
    for label, (left, top, right, bottom) in squares_at(index, size).items():
        pixels[top:bottom, left:right] = COLORS[label]
    return pixels


def write_video(
    path: Path,
    count: int = 50,
    size: tuple[int, int] = (96, 64),
    fps: Fraction | int = 25,
    codec: str = "libx264",
    pts: list[int] | None = None,  # in milliseconds, for a variable frame rate
    rotation: int | None = None,
    aspect_ratio: Fraction | None = None,
    pixel_format: str = "yuv420p",
    faststart: bool = False,
) -> Path:
    import av

    options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps, options={"crf": "12", "g": "10"})
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this version of av reads rotations, but cannot write them")
            stream.set_display_rotation(rotation)
        if aspect_ratio is not None:
            stream.codec_context.sample_aspect_ratio = aspect_ratio
        container.start_encoding()
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(draw_frame(index, size), format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def truncate(path: Path, share: float = 0.6) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def probe(path: Path) -> dict:
    """What another program reads: size, frame rate, number of frames and their times."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        return {
            "size": (stream.width, stream.height),
            "fps": stream.average_rate,
            "codec": stream.codec_context.name,
            "pixels": stream.pix_fmt,
            "aspect_ratio": stream.sample_aspect_ratio,
            "times": [round(frame.time, 3) for frame in frames],
            "first": frames[0].to_ndarray(format="rgb24") if frames else None,
        }


class ColorRuntime:
    """A detector built by hand: the box around all red pixels is class 0, that around all green ones class 1."""

    name, class_map, input_size, device = "colors", CLASSES, None, torch.device("cpu")

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(self, images: Tensor) -> Predictions:
        self.batches.append(len(images))
        height, width = images.shape[-2:]
        logits = torch.full((len(images), 2, 2), -20.0)
        boxes = torch.zeros(len(images), 2, 4)
        for number, image in enumerate(images):
            for label, channel in ((0, 0), (1, 1)):
                others = [other for other in range(3) if other != channel]
                rows, columns = ((image[channel] > 0.7) & (image[others] < 0.4).all(0)).nonzero(as_tuple=True)
                if len(rows):
                    left, right = columns.min().item() / width, (columns.max().item() + 1) / width
                    top, bottom = rows.min().item() / height, (rows.max().item() + 1) / height
                    box = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
                    boxes[number, label] = torch.tensor(box)
                    logits[number, label, label] = 4.0
        return Predictions(logits, boxes)
