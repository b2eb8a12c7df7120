"""Unlabelled images in folders, for inference."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from rtdetr_tool.data.collate import FailedImage
from rtdetr_tool.data.faults import check_folder, retried, walked
from rtdetr_tool.data.image_formats import EXTENSIONS, is_image
from rtdetr_tool.data.preprocess import load_image
from rtdetr_tool.errors import DataError, MachineError
from rtdetr_tool.files import read_limited
from rtdetr_tool.ops.structures import Target

logger = logging.getLogger(__name__)

LARGEST_CLASSMAP = 16 << 20  # bytes

_NAMED = 5  # skipped files that a message names


@dataclass
class FolderContents:
    """The image files found in folders, and the other files in them; hidden files count as neither."""

    images: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def search(folders: str | Iterable[str]) -> FolderContents:
    """Every file in the folders and below them, each once; its extension decides whether it is an image.

    Folders come in the given order, files of each sorted by path. An entry may also be a single image file, whatever
    it is called. A linked folder below them is not followed; it counts as skipped.

    Raises:
        DataError: a folder does not exist, or there is no image in any of them.
        MachineError: a folder cannot be read.
    """
    found = FolderContents()
    for folder in [folders] if isinstance(folders, (str, os.PathLike)) else folders:
        if os.path.isfile(folder):
            found.images.append(os.fspath(folder))
        elif os.path.isdir(folder):
            for path in _walk(os.fspath(folder)):
                (found.images if is_image(path) else found.skipped).append(path)
        else:
            raise DataError(f"The image directory {os.fspath(folder)!r} does not exist.")
    if not found.images:
        others = f"; {skipped_line(found.skipped)}" if found.skipped else ""
        raise DataError(f"There are no images in {folders} (extensions {' '.join(EXTENSIONS)}){others}.")
    return FolderContents(list(dict.fromkeys(found.images)), list(dict.fromkeys(found.skipped)))


def find_images(folders: str | Iterable[str]) -> list[str]:
    """The image files that `search` finds; a warning counts and names the files that are skipped."""
    found = search(folders)
    if found.skipped:
        logger.warning("%s.", skipped_line(found.skipped))
    return found.images


def skipped_line(skipped: Sequence[str]) -> str:
    """`3 files skipped (not images): 2 .mp4, 1 .txt (a/b.mp4, ...)`."""
    kinds = Counter(Path(path).suffix.lower() or "without extension" for path in skipped)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    more = ", ..." if len(skipped) > _NAMED else ""
    what = "file skipped (not an image" if len(skipped) == 1 else "files skipped (not images"
    return f"{len(skipped)} {what}): {counts} ({', '.join(skipped[:_NAMED])}{more})"


def _walk(folder: str) -> list[str]:
    found = []
    for parent, folders, names in walked(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        found += [os.path.join(parent, name) for name in (*names, *linked) if not name.startswith(".")]
    return sorted(found, key=lambda path: Path(path).parts)


def read_classmap(path: str) -> list[str]:
    """Class names of a TAO classmap: one per line, line i (from 0) is class index i.

    Blank lines at the end do not count.
    """
    try:
        text = retried(lambda: read_limited(path, LARGEST_CLASSMAP), path).decode("utf-8-sig")
        lines = text.splitlines()
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
    """Images at the network's size; the position in `paths` is the image id. What cannot be read is a `FailedImage`.

    `skipped` are the files in the same folders that are not images.
    """

    def __init__(
        self,
        paths: Sequence[str],
        spatial_size: Sequence[int],
        preserve_aspect_ratio: bool = False,
        skipped: Sequence[str] = (),
    ) -> None:
        self.paths, self.skipped = list(paths), list(skipped)
        self.spatial_size, self.preserve_aspect_ratio = tuple(spatial_size), preserve_aspect_ratio

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Target] | FailedImage:
        path = self.paths[index]
        try:
            prepared = load_image(path, self.spatial_size, self.preserve_aspect_ratio)
        except (DataError, MachineError) as error:
            if isinstance(error, DataError):
                check_folder(path)
            elif get_worker_info() is None:
                raise
            return FailedImage(path, error)
        nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        return prepared.image, Target(*nothing, index, prepared.original_size, prepared.box_scale, path)
