"""What `inference` runs on: the images and videos of `dataset.infer_data_sources`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rtdetr_tool.data.folder import FolderContents, ImageFolder, search, skipped_line
from rtdetr_tool.data.pixels import RGB, PixelFormat
from rtdetr_tool.data.tiles import Tiling
from rtdetr_tool.data.video_container import INSTALL, require_video, video_supported
from rtdetr_tool.data.video_formats import VideoSource, video_source
from rtdetr_tool.errors import DataError
from rtdetr_tool.messages import first_of

logger = logging.getLogger(__name__)

_FIELD = "dataset.infer_data_sources"


@dataclass
class InferenceSources:
    images: ImageFolder  # may be empty
    videos: list[VideoSource]


def read_inference_sources(
    entry: Mapping[str, Any],
    spatial_size: Sequence[int],
    preserve_aspect_ratio: bool,
    tiling: Tiling | None = None,
    pixels: PixelFormat = RGB,
) -> InferenceSources:
    """The images and videos in the folders of `image_dir`, and what `video` names.

    Args:
        entry: `dataset.infer_data_sources`.
        spatial_size, preserve_aspect_ratio: how images are resized.
        tiling: how images are cut into tiles; None = not at all.
        pixels: what images are decoded to.

    Videos in folders are skipped with a warning if the package that decodes them is not installed.

    Raises:
        DataError: there is neither an image nor a video, or a folder does not exist.
        UserError: a video is named, but the package that decodes videos is not installed.
    """
    named = _named_videos(entry.get("video"))
    folders = entry.get("image_dir")
    if not folders and not named:
        raise DataError(
            f"{_FIELD}.image_dir: required, but not set; expected a folder with images and videos, or a list of "
            f"folders ({_FIELD}.video is for single videos, streams and cameras)"
        )
    contents = search(folders, videos=True, arrays=not pixels.is_rgb) if folders else FolderContents()
    if pixels.channels != 3 and (named or (contents.videos and not contents.images)):
        raise DataError(
            f"{_FIELD}: the frames of videos have 3 channels, but model.num_channels is {pixels.channels}; expected "
            "images"
        )
    if pixels.channels != 3 and contents.videos:
        logger.warning(
            "Skipping %s: videos have 3 channels, but model.num_channels is %d",
            first_of(contents.videos), pixels.channels,
        )  # fmt: skip
        contents.skipped, contents.videos = sorted([*contents.skipped, *contents.videos]), []
    if named or (contents.videos and not contents.images):
        require_video()
    elif contents.videos and not video_supported():
        logger.warning("Skipping %s: %s", first_of(contents.videos), INSTALL)
        contents.skipped, contents.videos = sorted([*contents.skipped, *contents.videos]), []
    if contents.skipped:
        logger.warning("%s", skipped_line(contents.skipped))
    images = ImageFolder(contents.images, spatial_size, preserve_aspect_ratio, contents.skipped, tiling, pixels)
    files = [VideoSource(path, "file") for path in contents.videos]
    return InferenceSources(images, list(dict.fromkeys([*files, *named])))


def _named_videos(value: str | int | list[str | int] | None) -> list[VideoSource]:
    values = value if isinstance(value, list) else [value]
    try:
        return [video_source(item) for item in values if item not in (None, "")]
    except ValueError as error:
        raise DataError(f"{_FIELD}.video: {error}") from None
