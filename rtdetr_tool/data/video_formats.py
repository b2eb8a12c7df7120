"""Supported video containers, and the sources that inference reads frames from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from rtdetr_tool.redaction import mask_secrets

# FFmpeg's demuxer -> file extensions. Playlists (HLS, DASH, concat) are not supported in files, because they name
# other files and addresses.
FORMATS: dict[str, tuple[str, ...]] = {
    "mov": (".mp4", ".m4v", ".mov", ".3gp", ".3g2"),
    "matroska": (".mkv", ".webm"),
    "avi": (".avi",),
    "mpegts": (".ts", ".mts", ".m2ts"),
    "mpeg": (".mpg", ".mpeg", ".vob"),
    "asf": (".wmv", ".asf"),
    "flv": (".flv",),
    "ogg": (".ogv",),
    "mxf": (".mxf",),
    "mjpeg": (".mjpeg", ".mjpg"),
    "h264": (".h264", ".264"),
    "hevc": (".hevc", ".h265", ".265"),
    "ivf": (".ivf",),
}
EXTENSIONS = tuple(extension for extensions in FORMATS.values() for extension in extensions)

# Streams that have no end: a lost connection is opened again.
LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt", "tcp")
SCHEMES = (*LIVE_SCHEMES, "http", "https")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_UNSAFE = re.compile(r"[^\w.-]+")


def is_video(name: str) -> bool:
    """Whether a file name has the extension of a supported video container, ignoring case."""
    return PurePath(name).suffix.lower() in EXTENSIONS


@dataclass(frozen=True)
class VideoSource:
    """A video file, a stream or a camera."""

    address: str  # a path, a URL, or the index of a camera
    kind: Literal["file", "stream", "camera"]

    @property
    def live(self) -> bool:
        """Whether it has no end, so that an interruption is a fault and frames cannot wait."""
        return self.kind == "camera" or (self.kind == "stream" and self.address.split(":")[0].lower() in LIVE_SCHEMES)

    @property
    def shown(self) -> str:
        """The source for messages and files, without credentials."""
        return f"camera {self.address}" if self.kind == "camera" else mask_secrets(self.address)

    @property
    def file_name(self) -> str:
        """A name that output files are named after; without credentials and parameters of a URL."""
        if self.kind == "file":
            return self.address
        if self.kind == "camera":
            return f"camera_{self.address}"
        bare = re.sub(r"^.*@", "", self.address.split("://", 1)[1].split("?")[0].split("#")[0])
        return _UNSAFE.sub("_", mask_secrets(bare)).strip("_.")[:80] or "stream"


def video_source(value: str | int) -> VideoSource:
    """The source for a path, a URL or the index of a camera (a number, or its digits).

    Raises:
        ValueError: a URL with another scheme than `SCHEMES`.
    """
    text = str(value)
    if re.fullmatch(r"\d{1,3}", text):
        return VideoSource(text, "camera")
    scheme = _SCHEME.match(text)
    if scheme is None:
        return VideoSource(text, "file")
    if scheme[1].lower() not in SCHEMES:
        raise ValueError(f"{scheme[1]}:// is not supported; expected one of {', '.join(SCHEMES)}")
    return VideoSource(text, "stream")
