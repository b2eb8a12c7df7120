"""Unlabelled images in folders, for inference."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from rtdetr_tool.data.collate import FailedImage
from rtdetr_tool.data.preprocess import load_image
from rtdetr_tool.errors import DataError
from rtdetr_tool.ops.structures import Target

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def find_images(folders: str | Iterable[str]) -> list[str]:
    """Every image file in the folders and below them, by extension, each once.

    Folders come in the given order, files of each sorted by path; hidden files and folders are passed over. An entry
    may also be a single image file.
    """
    paths: dict[str, None] = {}
    for folder in [folders] if isinstance(folders, (str, os.PathLike)) else folders:
        if os.path.isfile(folder):
            paths[os.fspath(folder)] = None
        elif os.path.isdir(folder):
            paths.update(dict.fromkeys(_walk(os.fspath(folder))))
        else:
            raise DataError(f"The image directory {os.fspath(folder)!r} does not exist.")
    if not paths:
        raise DataError(f"There are no images in {folders} (extensions {' '.join(EXTENSIONS)}).")
    return list(paths)


def _walk(folder: str) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.join(parent, name)
            for name in names
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    return sorted(found, key=lambda path: Path(path).parts)


def read_classmap(path: str) -> list[str]:
    """Class names of a TAO classmap: one per line, line i (from 0) is class index i.

    Blank lines at the end do not count.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"Classmap not found: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read classmap {path}: {error}") from error
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise DataError(f"Classmap {path} is empty; it must hold one class name per line.")
    if "" in names:
        raise DataError(f"Classmap {path} has no name in line {names.index('') + 1}.")
    return names


class ImageFolder(Dataset):
    """Images at the network's size; the position in `paths` is the image id. What cannot be read is a `FailedImage`."""

    def __init__(self, paths: Sequence[str], spatial_size: Sequence[int], preserve_aspect_ratio: bool = False) -> None:
        self.paths = list(paths)
        self.spatial_size, self.preserve_aspect_ratio = tuple(spatial_size), preserve_aspect_ratio

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Target] | FailedImage:
        path = self.paths[index]
        try:
            prepared = load_image(path, self.spatial_size, self.preserve_aspect_ratio)
        except DataError as error:
            return FailedImage(path, str(error))
        nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        return prepared.image, Target(*nothing, index, prepared.original_size, prepared.box_scale, path)
