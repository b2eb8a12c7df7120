"""Read every image file of a split, and report those that cannot be read or differ from their annotations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from rtdetr_tool.data.channels import ChannelMismatch
from rtdetr_tool.data.decoding import SizeMismatch, decode_image, image_header
from rtdetr_tool.data.faults import check_folder, retried
from rtdetr_tool.data.findings import Findings
from rtdetr_tool.data.loader import explain_dead_worker, explain_loader_faults, start_worker
from rtdetr_tool.data.pixels import RGB, PixelFormat
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.errors import DataError, MachineError
from rtdetr_tool.files import sha256_of

# Checks that read every file


@dataclass
class ImageFacts:
    """Result of reading one image file: SHA-256 of its bytes and EXIF orientation, or the reason it is unusable."""

    sha256: str | None = None
    orientation: int = 1
    as_stored: bool = False  # labeled without EXIF rotation
    wrong_size: bool = False
    error: str | None = None
    machine: bool = False  # whether the error is a machine fault
    wrong_channels: bool = False


class _Files(Dataset[ImageFacts]):
    """Reads each file as training does."""

    def __init__(self, records: Sequence[ImageRecord], pixels: PixelFormat) -> None:
        self.records, self.pixels = records, pixels

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> ImageFacts:
        record = self.records[index]
        try:
            decode_image(record.path, (record.width, record.height) if record.width else None, self.pixels)
            upright, orientation = image_header(record.path)
            as_stored = bool(record.width) and (record.width, record.height) != upright
            sha256 = retried(lambda: sha256_of(record.path), record.path)
            return ImageFacts(sha256, orientation, as_stored)
        except MachineError as error:
            return ImageFacts(error=str(error), machine=True)
        except (DataError, OSError) as error:
            size, channels = (isinstance(error, kind) for kind in (SizeMismatch, ChannelMismatch))
            return ImageFacts(wrong_size=size, wrong_channels=channels, error=str(error))


def read_files(records: Sequence[ImageRecord], workers: int, pixels: PixelFormat = RGB) -> Iterator[ImageFacts]:
    """Read every image file, in order, with `workers` processes (0: in this process)."""
    options: dict[str, Any] = {"prefetch_factor": 16, "worker_init_fn": start_worker} if workers else {}
    with explain_dead_worker(f"dataset.workers (now {workers})"):
        loader = DataLoader(_Files(records, pixels), batch_size=None, num_workers=workers, **options)
        for record, facts in zip(records, explain_loader_faults(loader), strict=True):
            if facts.machine:
                raise MachineError(facts.error)
            if facts.error is not None:
                check_folder(record.path)
            yield facts


class FileCheck:
    """Checks image files one by one; duplicates are recognized by their SHA-256.

    Args:
        replaced: splits in which training replaces unreadable images.
    """

    def __init__(self, findings: Findings, replaced: Sequence[str] = ()) -> None:
        self.findings, self.replaced = findings, replaced
        self.bad = 0
        self._paths: dict[str, dict[str | None, str]] = {}  # split -> sha256 -> path

    def add(self, split: str, record: ImageRecord, facts: ImageFacts) -> None:
        if facts.error is not None:
            self.bad += 1
            kind = "image_size_differs" if facts.wrong_size else "image_unreadable"
            kind = "image_replaced" if split in self.replaced and not facts.wrong_channels else kind
            self.findings.add(kind, split, facts.error, record=record)
            return
        if facts.as_stored:
            self.findings.add("exif_not_applied", split, record.path, record=record)
        elif facts.orientation > 1 and (facts.orientation < 5 or record.width == record.height):
            self.findings.add("exif_unclear", split, record.path, record=record)
        paths, train_paths = self._paths.setdefault(split, {}), self._paths.get("train", {})
        if facts.sha256 in paths:
            self.findings.add("image_twice", split, f"{record.path} = {paths[facts.sha256]}", record=record)
        elif split != "train" and train_paths.get(facts.sha256, record.path) != record.path:
            # Images with the same path were already reported by `check_contents`.
            self.findings.add("image_in_train", split, f"{record.path} = {train_paths[facts.sha256]}", record=record)
        paths.setdefault(facts.sha256, record.path)
