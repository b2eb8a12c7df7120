"""Decode image files to uint8 [C, H, W], RGB by default, rotated upright by their EXIF orientation."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import IO, TypeVar

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from rtdetr_tool.data.array_files import ArrayFile, is_array, is_tiff, open_array, open_tiff
from rtdetr_tool.data.channels import exact_pixels
from rtdetr_tool.data.faults import check_readable, kind_of, machine_error, retried
from rtdetr_tool.data.image_formats import FORMATS
from rtdetr_tool.data.library_messages import keep_off_the_terminal
from rtdetr_tool.data.pixels import RGB, PixelFormat, rgb_pixels
from rtdetr_tool.errors import DataError, MachineError, MissingData
from rtdetr_tool.files import open_regular

T = TypeVar("T")
Opened = Image.Image | ArrayFile

_ORIENTATION = 0x0112  # EXIF tag
# EXIF orientation -> function that rotates stored pixels [H, W, C] upright; from 5, width and height are swapped.
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


def decode_image(
    path: str | os.PathLike[str], declared_size: tuple[int, int] | None = None, pixels: PixelFormat = RGB
) -> Tensor:
    """The first frame of an image file as uint8 [C, H, W], rotated upright by its EXIF orientation.

    In RGB, transparency is dropped, and 16-bit gray is scaled to 8 bits. In any other format, the file must have the
    number of channels of `pixels`. `declared_size` is the (width, height) that annotations refer to: if it fits the
    file only without EXIF rotation, the annotations were made on the unrotated image, and the image is not rotated. If
    it fits neither way, the boxes cannot be right, and `SizeMismatch` is raised.

    Raises:
        DataError: the file cannot be decoded; the message contains the path.
        ChannelMismatch: it has another number of channels.
    """

    def decode(file: Opened) -> Tensor:
        _load(file)
        orientation = _orientation(file)
        if declared_size == file.size != _upright_size(file.size, orientation):
            orientation = 1
        size = _upright_size(file.size, orientation)
        if declared_size is not None and declared_size != size:
            raise SizeMismatch(
                f"Image {os.fspath(path)} is {size[0]}x{size[1]} pixels, "
                f"but {declared_size[0]}x{declared_size[1]} in its annotations. Fix the annotations or the file."
            )
        return _upright(file, orientation, pixels, os.fspath(path))

    return _read(path, decode, pixels=pixels)


def decode_content(content: bytes, name: str, pixels: PixelFormat = RGB) -> Tensor:
    """Like `decode_image`, for the content of a file; `name` is used in errors."""

    def decode(file: Opened) -> Tensor:
        _load(file)
        return _upright(file, _orientation(file), pixels, name)

    return _read(name, decode, content, pixels)


def content_size(content: bytes, name: str) -> tuple[int, int]:
    """(width, height) as stored in the content of a file, from its header; `name` is used in errors."""
    return _read(name, lambda file: file.size, content)


def decode_pil_image(image: Image.Image, pixels: PixelFormat = RGB) -> Tensor:
    """A PIL image as uint8 [C, H, W]; not rotated by EXIF, because boxes refer to its pixels as they are.

    Raises:
        DataError: the image has no pixels or is closed, or its file cannot be read completely.
    """
    if 0 in image.size:
        raise DataError(f"An image of {image.width}x{image.height} has no pixels.")
    try:
        keep_off_the_terminal()
        image.load()
    except Exception as error:  # Pillow reads the file lazily
        name = getattr(image, "filename", "")
        if (kind := kind_of(error)) is not None:
            raise machine_error(kind, f"The image {name!r}", error) from error
        raise DataError(f"Cannot read the image {name!r}: {error}. Pass an open PIL image or a path.") from error
    return _upright(image, 1, pixels, getattr(image, "filename", "") or "in memory")


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) after EXIF rotation, from the file's header if possible; DataError if it cannot be read."""
    return image_header(path)[0]


def image_header(path: str | os.PathLike[str]) -> tuple[tuple[int, int], int]:
    """(width, height) after EXIF rotation, and the EXIF orientation 1..8; DataError if they cannot be read."""

    def measure(file: Opened) -> tuple[tuple[int, int], int]:
        if isinstance(file, Image.Image) and file.format == "TIFF":
            file.load()  # rotates the image; before that, `size` differs between Pillow versions
        orientation = _orientation(file)
        return _upright_size(file.size, orientation), orientation

    return _read(path, measure)


def _load(file: Opened) -> None:
    if isinstance(file, Image.Image):
        file.load()


def _upright(file: Opened, orientation: int, pixels: PixelFormat, name: str) -> Tensor:
    stored = rgb_pixels(file) if pixels.is_rgb and isinstance(file, Image.Image) else exact_pixels(file, pixels, name)
    return _ROTATIONS[orientation](torch.from_numpy(stored)).contiguous().permute(2, 0, 1)


def _read(
    path: str | os.PathLike[str],
    use: Callable[[Opened], T],
    content: bytes | None = None,
    pixels: PixelFormat = RGB,
) -> T:
    """Call `use` with the opened image; with `content` that is read, and `path` is only used in messages.

    Raises:
        DataError: the file cannot be decoded; the message contains the path.
        MachineError: the machine could not read the file, even after retries.
    """

    def read() -> T:
        formats = _formats()  # before the file is opened, because it imports modules of Pillow
        opened = open_regular(path) if content is None else io.BytesIO(content)
        with opened as stream, _opened(stream, formats, pixels) as file:
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


@contextmanager
def _opened(stream: IO[bytes], formats: list[str], pixels: PixelFormat) -> Iterator[Opened]:
    """Open an image with Pillow, or, if that cannot or would drop bands, as an `ArrayFile`."""
    head = stream.read(8)
    stream.seek(0)
    if is_array(head):
        yield open_array(stream)
        return
    if is_tiff(head) and (not pixels.is_rgb and pixels.channels > 1):
        yield open_tiff(stream)
        return
    try:
        file: Image.Image | ArrayFile = Image.open(stream, formats=formats)
    except UnidentifiedImageError:
        bands = _tiff_of_bands(stream) if is_tiff(head) else None
        if bands is None:
            raise
        file = bands
    with nullcontext(file) if isinstance(file, ArrayFile) else file:
        yield file


def _tiff_of_bands(stream: IO[bytes]) -> ArrayFile | None:
    """A TIFF file that Pillow cannot open; None if tifffile cannot either, or is not installed."""
    stream.seek(0)
    try:
        return open_tiff(stream)
    except Exception as error:  # tifffile raises TiffFileError, ValueError, struct.error and more
        if kind_of(error) is not None:
            raise
        return None


@cache
def _formats() -> list[str]:
    """The `FORMATS` that the installed Pillow supports."""
    keep_off_the_terminal()
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _check_pixels(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"its size is {width}x{height}; it has no pixels")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"its size of {width}x{height} is above the limit of {MAX_PIXELS} pixels (a decompression bomb?). Split it "
            "into tiles or reduce its size"
        )


def _upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return size if orientation < 5 else size[::-1]


def _orientation(file: Opened) -> int:
    """The EXIF orientation 1..8; 1 (upright) if the EXIF data is invalid."""
    if isinstance(file, ArrayFile):
        return file.orientation
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
