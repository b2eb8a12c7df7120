"""Decode image files to uint8 RGB [3, H, W], rotated upright by their EXIF orientation."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from rtdetr_tool.data.faults import check_readable, kind_of, machine_error, retried
from rtdetr_tool.data.image_formats import FORMATS
from rtdetr_tool.data.library_messages import keep_off_the_terminal
from rtdetr_tool.data.pixels import rgb_pixels
from rtdetr_tool.errors import DataError, MachineError, MissingData
from rtdetr_tool.files import open_regular

T = TypeVar("T")

_ORIENTATION = 0x0112  # EXIF tag
# EXIF orientation -> function that rotates stored pixels [H, W, 3] upright; from 5, width and height are swapped.
_ROTATIONS: dict[int, Callable[[Tensor], Tensor]] = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels.flip(1),
    3: lambda pixels: pixels.flip(0, 1),
    4: lambda pixels: pixels.flip(0),
    5: lambda pixels: pixels.transpose(0, 1),
    6: lambda pixels: pixels.rot90(-1, (0, 1)),
    7: lambda pixels: pixels.flip(0, 1).transpose(0, 1),
    8: lambda pixels: pixels.rot90(1, (0, 1)),
}


# Decoding

# A file with more pixels (width x height) is refused before it is decoded. Phones take images of up to 108 million
# pixels, and decoders need less than 2 GB for this many.
MAX_PIXELS = 120_000_000


class SizeMismatch(DataError):
    """The size of an image file differs from that in its annotations."""


def decode_image(path: str | os.PathLike[str], declared_size: tuple[int, int] | None = None) -> Tensor:
    """The first frame of an image file as uint8 RGB [3, H, W], rotated upright by its EXIF orientation.

    Transparency is dropped, and 16-bit gray is scaled to 8 bits. `declared_size` is the (width, height) that
    annotations refer to: if it fits the file only without EXIF rotation, the annotations were made on the unrotated
    image, and the image is not rotated. If it fits neither way, the boxes cannot be right, and `SizeMismatch` is
    raised.

    Raises:
        DataError: the file cannot be decoded; the message contains the path.
    """

    def decode(file: Image.Image) -> Tensor:
        file.load()
        orientation = _orientation(file)
        if declared_size == file.size != _upright_size(file.size, orientation):
            orientation = 1
        size = _upright_size(file.size, orientation)
        if declared_size is not None and declared_size != size:
            raise SizeMismatch(
                f"Image {os.fspath(path)} is {size[0]}x{size[1]} pixels, "
                f"but {declared_size[0]}x{declared_size[1]} in its annotations. Fix the annotations or the file."
            )
        return _upright(file, orientation)

    return _read(path, decode)


def decode_content(content: bytes, name: str) -> Tensor:
    """Like `decode_image`, for the content of a file; `name` is used in errors."""

    def decode(file: Image.Image) -> Tensor:
        file.load()
        return _upright(file, _orientation(file))

    return _read(name, decode, content)


def content_size(content: bytes, name: str) -> tuple[int, int]:
    """(width, height) as stored in the content of a file, from its header; `name` is used in errors."""
    return _read(name, lambda file: file.size, content)


def decode_pil_image(image: Image.Image) -> Tensor:
    """A PIL image as uint8 RGB [3, H, W]; not rotated by EXIF, because boxes refer to its pixels as they are.

    Raises:
        DataError: the image is closed, or its file cannot be read completely.
    """
    try:
        keep_off_the_terminal()
        image.load()
    except Exception as error:  # Pillow reads the file lazily
        name = getattr(image, "filename", "")
        if (kind := kind_of(error)) is not None:
            raise machine_error(kind, f"The image {name!r}", error) from error
        raise DataError(f"Cannot read the image {name!r}: {error}. Pass an open PIL image or a path.") from error
    return torch.from_numpy(rgb_pixels(image)).permute(2, 0, 1)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) after EXIF rotation, from the file's header if possible; DataError if it cannot be read."""
    return image_header(path)[0]


def image_header(path: str | os.PathLike[str]) -> tuple[tuple[int, int], int]:
    """(width, height) after EXIF rotation, and the EXIF orientation 1..8; DataError if they cannot be read."""

    def measure(file: Image.Image) -> tuple[tuple[int, int], int]:
        if file.format == "TIFF":
            file.load()  # rotates the image; before that, `size` differs between Pillow versions
        orientation = _orientation(file)
        return _upright_size(file.size, orientation), orientation

    return _read(path, measure)


def _upright(file: Image.Image, orientation: int) -> Tensor:
    pixels = torch.from_numpy(rgb_pixels(file))
    return _ROTATIONS[orientation](pixels).contiguous().permute(2, 0, 1)


def _read(path: str | os.PathLike[str], use: Callable[[Image.Image], T], content: bytes | None = None) -> T:
    """Call `use` with the opened image; with `content` that is read, and `path` is only used in messages.

    Raises:
        DataError: the file cannot be decoded; the message contains the path.
        MachineError: the machine could not read the file, even after retries.
    """

    def read() -> T:
        formats = _formats()  # before the file is opened, because it imports modules of Pillow
        opened = open_regular(path) if content is None else io.BytesIO(content)
        with opened as stream, Image.open(stream, formats=formats) as file:
            _check_pixels(*file.size)
            return use(file)

    try:
        return retried(read, path)
    except (DataError, MachineError):
        raise
    except FileNotFoundError as error:
        raise MissingData(f"Image file not found: {os.fspath(path)}") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        if content is None:
            check_readable(path)
        raise DataError(f"Cannot read image {os.fspath(path)}: {_reason(path, content, error)}") from error


@cache
def _formats() -> list[str]:
    """The `FORMATS` that the installed Pillow supports."""
    keep_off_the_terminal()
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"its size of {width}x{height} is above the limit of {MAX_PIXELS} pixels (a decompression bomb?). Split it "
            "into tiles or reduce its size"
        )


def _upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return size if orientation < 5 else size[::-1]


def _orientation(file: Image.Image) -> int:
    """The EXIF orientation 1..8; 1 (upright) if the EXIF data is invalid."""
    try:
        orientation = int(file.getexif().get(_ORIENTATION, 1))
    except Exception as error:
        if kind_of(error) is not None:
            raise
        return 1
    return orientation if orientation in _ROTATIONS else 1


def _reason(path: str | os.PathLike[str], content: bytes | None, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        if (os.path.getsize(path) if content is None else len(content)) == 0:
            return "the file is empty."
        return f"it is not an image, its header is corrupted, or its format is not one of {', '.join(FORMATS)}."
    if isinstance(error, Image.DecompressionBombError):
        return f"its size is above the limit of {MAX_PIXELS} pixels (a decompression bomb?)."
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return f"{text.rstrip('.')}."
