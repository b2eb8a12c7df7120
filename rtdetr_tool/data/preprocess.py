"""From an image file to the network's input, the same for evaluation, inference and every runtime.

Images are uint8 RGB [3, H, W] until they are on the device; `to_float` makes them 0..1 there. There is no mean or
standard deviation (TAO's detectors are trained that way).
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from rtdetr_tool.errors import DataError

_ORIENTATION = 0x0112  # EXIF tag
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass
class PreparedImage:
    """An image at the network's size and what undoes the resizing (see `ops.structures.Target`)."""

    image: Tensor  # [3, H, W] uint8
    original_size: tuple[int, int]  # (height, width)
    box_scale: tuple[float, float]  # (x, y)


# Decoding


def decode_image(path: str | os.PathLike, declared_size: tuple[int, int] | None = None) -> Tensor:
    """The first frame of an image file as uint8 RGB [3, H, W], turned upright by its EXIF orientation.

    Transparency is dropped, 16-bit grey is scaled to 8 bits. `declared_size` is the (width, height) that annotations
    refer to: where it fits the file only without the EXIF rotation, the annotations were made on the unrotated image,
    and it is left so; where it fits neither way, the boxes cannot be right and DataError says so.

    Raises:
        DataError: with the path, whatever is wrong with the file.
    """
    path = os.fspath(path)
    try:
        # The copy of numpy's is needed anyway; torch must own writable memory.
        with Image.open(path) as file:
            picture = _to_rgb(file)
            transpose = _TRANSPOSES.get(_orientation(file))
    except FileNotFoundError as error:
        raise DataError(f"Image file not found: {path}") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and many more
        raise DataError(f"Cannot read image {path}: {_reason(path, error)}") from error
    if transpose is not None and not (declared_size == picture.size != _turned(picture.size, transpose)):
        picture = picture.transpose(transpose)
    if declared_size is not None and declared_size != picture.size:
        raise DataError(
            f"Image {path} is {picture.width}x{picture.height} pixels, "
            f"but its annotations are for {declared_size[0]}x{declared_size[1]}."
        )
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) after EXIF rotation, from the file's header where possible; DataError if that cannot be read."""
    try:
        with Image.open(path) as file:
            if file.format == "TIFF":
                file.load()  # turns the picture itself; before that, Pillow's versions differ in what `size` is
            transpose = _TRANSPOSES.get(_orientation(file))
            return file.size if transpose is None else _turned(file.size, transpose)
    except Exception as error:
        raise DataError(f"Cannot read image {os.fspath(path)}: {_reason(path, error)}") from error


def _turned(size: tuple[int, int], transpose: Image.Transpose) -> tuple[int, int]:
    return size if transpose in (_TRANSPOSES[2], _TRANSPOSES[3], _TRANSPOSES[4]) else size[::-1]


def _orientation(file: Image.Image) -> int:
    """The EXIF orientation 1..8; a damaged EXIF block counts as upright."""
    try:
        return int(file.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _to_rgb(file: Image.Image) -> Image.Image:
    file.load()
    mode = file.mode
    if mode == "RGB":
        return file.copy() if file.readonly else file
    if mode.startswith("I") or mode == "F":
        return Image.fromarray(_to_8_bit(np.asarray(file), mode)).convert("RGB")
    if mode == "P":
        return file.convert("RGBA").convert("RGB")
    if mode in ("RGBa", "La"):  # premultiplied alpha
        return file.convert("RGBA" if mode == "RGBa" else "LA").convert("RGB")
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(file, lab, srgb, outputMode="RGB")
    return file.convert("RGB")


def _to_8_bit(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey values of more than 8 bits brought to 0..255.

    Integers are taken as 16-bit, 65535 is white; wider ones by their own maximum. Floats are taken as 0..1, else as
    0..255, else by their own range.
    """
    if mode == "F":
        values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        low, high = float(values.min()), float(values.max())
        if low >= 0 and high <= 1:
            scaled = values * 255
        elif low >= 0 and high <= 255:
            scaled = values
        else:
            scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    else:
        values = values.astype(np.int64).clip(min=0)
        scaled = values * (255 / max(65535, int(values.max())))
    return np.rint(scaled).astype(np.uint8)


def _reason(path: str | os.PathLike, error: Exception) -> str:
    try:
        if os.path.isdir(path):
            return "it is a directory."
        if os.path.getsize(path) == 0:
            return "the file is empty."
    except OSError as problem:
        return f"{problem.strerror or problem}."
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is not an image, or of an unknown format."
    return f"{str(error).strip() or type(error).__name__}."


# Resizing


def input_size(spatial_size: Sequence[int], preserve_aspect_ratio: bool) -> tuple[int, int]:
    """(height, width) of what the network gets: `spatial_size` itself, or the square around its longer side."""
    height, width = spatial_size
    return (max(height, width),) * 2 if preserve_aspect_ratio else (height, width)


def prepare_image(image: Tensor, spatial_size: Sequence[int], preserve_aspect_ratio: bool = False) -> PreparedImage:
    """Resize a decoded image, uint8 [3, H, W], to the network's input.

    Without `preserve_aspect_ratio` it is stretched to `spatial_size` (height, width). With it, its longer side becomes
    the longer of the two, and black is added on the right or at the bottom to make a square.
    """
    height, width = image.shape[-2:]
    target = input_size(spatial_size, preserve_aspect_ratio)
    if not preserve_aspect_ratio:
        return PreparedImage(resize(image, target), (height, width), (float(width), float(height)))
    inner = letterbox_size((height, width), target[0])
    padding = [0, 0, target[1] - inner[1], target[0] - inner[0]]
    resized = F.pad(resize(image, inner), padding, fill=0)
    return PreparedImage(resized, (height, width), (target[1] * width / inner[1], target[0] * height / inner[0]))


def load_image(
    path: str | os.PathLike, spatial_size: Sequence[int], preserve_aspect_ratio: bool = False
) -> PreparedImage:
    """Decode and prepare one file."""
    return prepare_image(decode_image(path), spatial_size, preserve_aspect_ratio)


def letterbox_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) of an image whose longer side becomes `side`; never below one pixel."""
    longest = max(size)
    height, width = (max(1, round(length * side / longest)) for length in size)
    return height, width


def resize(image: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear with antialias, on uint8, to (height, width)."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return F.resize(image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)


# On the device


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 0..1, on whatever device and in whatever memory format the images are."""
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images.to(torch.float32)


def draw_scale(scales: Sequence[int | Sequence[int]], seed: int, step: int) -> tuple[int, int]:
    """The (height, width) that multi-scale training takes in this step: a function of seed and step alone.

    All ranks therefore agree. An entry of `scales` is the side of a square or a (height, width) pair.
    """
    entry = random.Random(f"multi-scale {seed} {step}").choice(list(scales))
    height, width = (entry, entry) if isinstance(entry, int) else entry
    return int(height), int(width)


def resize_batch(images: Tensor, size: tuple[int, int]) -> Tensor:
    """A float batch [B, 3, H, W] at another (height, width), bilinear. Boxes are relative and stay as they are."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return torch.nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
