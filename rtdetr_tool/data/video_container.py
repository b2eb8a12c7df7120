"""Open videos, streams and cameras with PyAV."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

from rtdetr_tool.data.faults import check_readable, kind_of, machine_error
from rtdetr_tool.data.video_formats import EXTENSIONS, FORMATS, VideoSource
from rtdetr_tool.errors import DataError, MissingData, UserError
from rtdetr_tool.files import open_regular
from rtdetr_tool.redaction import mask_secrets

INSTALL = 'reading videos requires av: pip install "rtdetr-tool[video]"'
_RTSP_VERSION = 18  # of av; the FFmpeg of older wheels (tested: 15.1 to 17.0) crashes when it opens such a stream
_TIMEOUT = 10.0  # seconds, to connect and for the next packet of a stream


def video_supported() -> bool:
    return importlib.util.find_spec("av") is not None


def require_video() -> None:
    """UserError if the package that decodes videos is not installed."""
    if not video_supported():
        raise UserError(INSTALL[0].upper() + INSTALL[1:])


def av_library() -> Any:
    import av

    return av


def open_container(source: VideoSource) -> tuple[Any, Any]:
    """PyAV's container and its video stream.

    Raises:
        DataError: it is missing, cannot be opened, or has no video.
    """
    av, place = av_library(), source.address
    options: dict[str, str] = {}
    driver = timeout = None
    if source.kind == "file":
        _check_file(place)
        options = {"format_whitelist": ",".join((*FORMATS, "m4v", "mp4", "webm")), "protocol_whitelist": "file"}
        place = f"file:{place}"
    else:
        timeout = _TIMEOUT
    if source.kind == "camera":
        place, driver = _camera(source.address)
    elif place.lower().startswith("rtsp"):
        if int(av.__version__.split(".")[0]) < _RTSP_VERSION:
            raise DataError(
                f"{source.shown} cannot be opened: RTSP requires av {_RTSP_VERSION}.0 or newer (Python 3.11), but "
                f"{av.__version__} is installed. Run pip install -U av"
            )
        options = {"rtsp_transport": "tcp"}
    try:
        container = av.open(place, format=driver, options=options, timeout=timeout, metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        if (kind := kind_of(error)) in ("files", "memory"):
            raise machine_error(kind, f"The video {source.shown}", error) from error
        if source.kind == "file":
            check_readable(source.address)
            raise DataError(f"{source.shown} is not a valid video file: {reason_of(error)}") from error
        raise DataError(f"{source.shown} cannot be opened: {reason_of(error)}") from error
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not streams:
        container.close()
        raise DataError(f"{source.shown} has no video")
    streams[0].thread_type = "AUTO"
    return container, streams[0]


def reason_of(error: BaseException) -> str:
    """What FFmpeg reports, without the address."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return mask_secrets(text).rstrip(".")


def _check_file(path: str) -> None:
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise DataError(f"{path} is not a valid video file: it is empty")
    except FileNotFoundError:
        raise MissingData(f"{path} does not exist; expected a video ({' '.join(EXTENSIONS)})") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _camera(index: str) -> tuple[str, str]:
    """The name and FFmpeg's driver of a camera."""
    if sys.platform == "darwin":
        return f"{index}:none", "avfoundation"
    device = f"/dev/video{index}"
    if not os.path.exists(device):
        raise DataError(f"camera {index} does not exist: there is no {device}")
    return device, "v4l2"


def _is_cover(stream: Any) -> bool:
    """Whether it is the cover of a music file."""
    return "attached_pic" in str(getattr(stream.disposition, "name", "")).lower()
