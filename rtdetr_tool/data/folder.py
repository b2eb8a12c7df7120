"""Unlabeled images in folders, for inference."""

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

from rtdetr_tool.data.array_files import ARRAY_SUFFIX
from rtdetr_tool.data.collate import FailedImage
from rtdetr_tool.data.decoding import decode_image
from rtdetr_tool.data.faults import check_folder, retried, walked
from rtdetr_tool.data.image_formats import EXTENSIONS, is_image
from rtdetr_tool.data.pixels import RGB, PixelFormat
from rtdetr_tool.data.preprocess import prepare_image
from rtdetr_tool.data.tiles import TiledSample, Tiling, tiled_sample
from rtdetr_tool.data.video_formats import EXTENSIONS as VIDEO_EXTENSIONS
from rtdetr_tool.data.video_formats import is_video
from rtdetr_tool.errors import DataError, MachineError, MissingData
from rtdetr_tool.files import read_limited
from rtdetr_tool.messages import first_of
from rtdetr_tool.ops.structures import Target

logger = logging.getLogger(__name__)

LARGEST_CLASSMAP = 16 << 20  # bytes


@dataclass
class FolderContents:
    """The image files in folders, the videos and the other, skipped files; hidden files are in none of the lists."""

    images: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def search(folders: str | Iterable[str], videos: bool = False, arrays: bool = False) -> FolderContents:
    """Find all files in folders and their subfolders, without duplicates; the extension decides what is an image.

    Folders keep their order, and the files of each are sorted by path. An entry may also be a single image file with
    any name. Links to folders are not followed; they count as skipped, and without `videos` so do videos, without
    `arrays` array files (.npy), which other programs store next to images.

    Raises:
        DataError: a folder does not exist, or none of them contains an image (with `videos`: or a video).
        MachineError: a folder cannot be read.
    """
    contents = FolderContents()
    for folder in [folders] if isinstance(folders, (str, os.PathLike)) else folders:
        if os.path.isfile(folder):
            path = os.fspath(folder)
            (contents.videos if videos and is_video(path) else contents.images).append(path)
        elif os.path.isdir(folder):
            for path in _walk(os.fspath(folder)):
                _list_of(path, contents, videos, arrays).append(path)
        else:
            raise MissingData(f"The image directory {os.fspath(folder)!r} does not exist.")
    if not contents.images and not contents.videos:
        skipped = f". {skipped_line(contents.skipped)}" if contents.skipped else ""
        kinds = "images or videos" if videos else "images"
        more = (*(VIDEO_EXTENSIONS if videos else ()), *((ARRAY_SUFFIX,) if arrays else ()))
        extensions = " ".join((*EXTENSIONS, *more))
        raise DataError(f"{folders} contains no {kinds}; expected files with the extensions {extensions}{skipped}")
    return FolderContents(
        *(list(dict.fromkeys(paths)) for paths in (contents.images, contents.videos, contents.skipped))
    )


def _list_of(path: str, contents: FolderContents, videos: bool, arrays: bool) -> list[str]:
    if is_image(path) or (arrays and path.lower().endswith(ARRAY_SUFFIX)):
        return contents.images
    return contents.videos if videos and is_video(path) else contents.skipped


def find_images(folders: str | Iterable[str], arrays: bool = False) -> list[str]:
    """The image files in folders, see `search`; skipped files are logged as a warning."""
    contents = search(folders, arrays=arrays)
    if contents.skipped:
        logger.warning("%s", skipped_line(contents.skipped))
    return contents.images


def skipped_line(skipped: Sequence[str]) -> str:
    """`Skipping 3 files that are not images (2 .mp4, 1 .txt): a/b.mp4, ...`."""
    kinds = Counter(Path(path).suffix.lower() or "without extension" for path in skipped)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    what = "1 file that is not an image" if len(skipped) == 1 else f"{len(skipped)} files that are not images"
    return f"Skipping {what} ({counts}): {first_of(skipped)}"


def _walk(folder: str) -> list[str]:
    paths: list[str] = []
    for parent, folders, names in walked(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        paths += [os.path.join(parent, name) for name in (*names, *linked) if not name.startswith(".")]
    return sorted(paths, key=lambda path: Path(path).parts)


def read_classmap(path: str) -> list[str]:
    """Class names of a TAO classmap, one per line: line i (from 0) is class index i.

    Blank lines at the end are ignored.
    """
    try:
        text = retried(lambda: read_limited(path, LARGEST_CLASSMAP), path).decode("utf-8-sig")
        lines = text.splitlines()
    except FileNotFoundError as error:
        raise MissingData(f"Classmap not found: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read classmap {path}: {error}") from error
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise DataError(f"Classmap {path} is empty; expected one class name per line.")
    if "" in names:
        raise DataError(f"Classmap {path}, line {names.index('') + 1}: empty; expected a class name.")
    return names


class ImageFolder(Dataset[tuple[Tensor, Target] | TiledSample | FailedImage]):
    """Images at the network's size; the index in `paths` is the image id. Unreadable images become a `FailedImage`.

    `skipped` are the other files in the same folders.
    """

    def __init__(
        self,
        paths: Sequence[str],
        spatial_size: Sequence[int],
        preserve_aspect_ratio: bool = False,
        skipped: Sequence[str] = (),
        tiling: Tiling | None = None,
        pixels: PixelFormat = RGB,
    ) -> None:
        self.tiling, self.pixels = tiling, pixels
        self.paths, self.skipped = list(paths), list(skipped)
        self.spatial_size, self.preserve_aspect_ratio = tuple(spatial_size), preserve_aspect_ratio

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Target] | TiledSample | FailedImage:
        path = self.paths[index]
        try:
            image = decode_image(path, pixels=self.pixels)
        except (DataError, MachineError) as error:
            if isinstance(error, DataError):
                check_folder(path)
            elif get_worker_info() is None:
                raise
            return FailedImage(path, error)
        nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        prepared = prepare_image(image, self.spatial_size, self.preserve_aspect_ratio)
        target = Target(*nothing, index, prepared.original_size, prepared.box_scale, path)
        if self.tiling is None:
            return prepared.image, target
        return tiled_sample(image, target, self.tiling, self.spatial_size, self.preserve_aspect_ratio)
