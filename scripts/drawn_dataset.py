"""What the scripts that draw datasets share: splits, arguments, and boxes of masks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

SPLITS = ("train", "val", "test")


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest box around a mask [H, W]: x, y, width, height in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def draw_splits(
    arguments: list[str] | None,
    write_split: Callable[[Path, str, int, int, int], int],
    description: str,
    size: int,
    size_help: str,
) -> Path:
    """Parse the arguments and write each split; returns the folder.

    Args:
        write_split: writes (root, split, number of images, size, seed), returns the number of objects.
        size: the default in pixels.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("out", type=Path, help="folder to write to")
    for split, count in zip(SPLITS, (400, 80, 40), strict=True):
        parser.add_argument(f"--{split}", type=int, default=count, metavar="N", help=f"images (default {count})")
    parser.add_argument("--size", type=int, default=size, help=f"{size_help} in pixels (default {size})")
    parser.add_argument("--seed", type=int, default=7, help="(default 7)")
    options = parser.parse_args(arguments)
    if options.size < 64:
        parser.error(f"--size must be at least 64, not {options.size}")
    if options.seed < 0 or min(getattr(options, split) for split in SPLITS) < 0:
        parser.error("--seed and the numbers of images must not be negative")
    out: Path = options.out
    for split in SPLITS:
        if count := getattr(options, split):
            objects = write_split(out, split, count, options.size, options.seed)
            print(f"{out / split}: {count} images, {objects} objects")
    return out
