"""How much a checkpoint may stand for: bounds on what it unpacks to, on its values and their nesting.

A small file can ask for far more than it holds: an archive by compression, tensors by strides of 0 or by sharing one
piece of memory, dictionaries by holding the same list many times. All that is measured before anything is copied.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdetr_tool.errors import CheckpointError

EXPANSION, FREE = 8, 64 << 20  # contents may take 8 times the bytes of the file, and 64 MiB in any case
MOST_ENTRIES = 100_000  # files in the archive: one per tensor
MOST_VALUES = 5_000_000  # of a whole file, shared parts counted as often as they stand there
MOST_METADATA = 500_000  # of those, what a file says of itself
DEEPEST = 64  # dictionaries and lists in one another
_CHARACTERS = 64  # of a text that count as one value
_PLAIN = (str, bytes, bool, int, float, type(None))


def check_archive(path: Path) -> None:
    """CheckpointError for a zip archive that unpacks to far more than its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile):
        return  # not an archive, or a damaged one: reading it says so
    if len(entries) > MOST_ENTRIES:
        raise CheckpointError(f"{path} was refused: it is an archive of {len(entries)} files (at most {MOST_ENTRIES}).")
    _check_expansion(sum(entry.file_size for entry in entries), path)


def check_content(payload: Any, path: Path) -> None:
    """CheckpointError for what was read if it stands for far more than the file holds."""
    counter = _Counter(MOST_VALUES, str(path))
    counter.count(payload)
    _check_expansion(counter.bytes, path)


def check_metadata_values(meta: Any, source: str) -> None:
    """CheckpointError for metadata that is not plain data, too large or nested too deep."""
    _Counter(MOST_METADATA, f"{source}: its metadata", plain=True).count(meta)


def check_tensor(name: str, tensor: Tensor, source: str) -> None:
    """CheckpointError for a tensor whose numbers are not all in the file, such as a sparse one."""
    odd = tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.device.type != "cpu"
    if odd:
        kind = "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        raise CheckpointError(
            f"{source} was refused: tensor {name!r} is {kind} on {tensor.device}; plain tensors are expected, as "
            "`model.state_dict()` gives them."
        )


def stored_numbers(tensors: Mapping[str, Tensor]) -> int:
    """Numbers that the tensors really hold; what shares memory counts once."""
    held: dict[int, int] = {}
    for tensor in tensors.values():
        storage = tensor.untyped_storage()
        numbers = held.get(storage.data_ptr(), 0) + tensor.numel()
        held[storage.data_ptr()] = min(numbers, storage.nbytes() // tensor.element_size())
    return sum(held.values())


def _check_expansion(size: int, path: Path) -> None:
    held = path.stat().st_size
    if size > max(EXPANSION * held, held + FREE):
        raise CheckpointError(
            f"{path} was refused: it has {held} bytes and unpacks to {size}, more than {EXPANSION} times as many. "
            "Damaged, or made to use up the memory; save it again without compression."
        )


class _Counter:
    """Counts values with shared parts written out, in time that depends on the file alone."""

    def __init__(self, limit: int, source: str, plain: bool = False) -> None:
        self.limit, self.source, self.plain = limit, source, plain
        self.bytes = 0  # of tensors
        self.known: dict[int, tuple[int, int]] = {}  # by identity: values and levels; (0, 0) while it is counted

    def count(self, value: Any, depth: int = 0, name: str = "") -> tuple[int, int]:
        """Values in `value`, and how many levels they are nested."""
        if isinstance(value, _PLAIN):
            return self._plain(value, name)
        if id(value) in self.known:
            found = self.known[id(value)]
            if not found[0]:
                self._refuse("something in it holds itself")
            if depth + found[1] > DEEPEST:
                self._refuse(f"it is nested more than {DEEPEST} deep")
            return found
        if depth > DEEPEST:
            self._refuse(f"it is nested more than {DEEPEST} deep")
        if isinstance(value, Tensor) and not self.plain:
            check_tensor(name, value, self.source)
            self.bytes += value.numel() * value.element_size()
        elif self.plain and not isinstance(value, (dict, list, tuple)):
            self._refuse(f"{name or 'it'} is a {type(value).__name__}, not plain data")
        self.known[id(value)] = (0, 0)
        inner = ()
        if isinstance(value, Mapping):
            inner = [part for key, entry in value.items() for part in ((key, ""), (entry, str(key)[:60]))]
        elif isinstance(value, (list, tuple, set)):
            inner = [(entry, name) for entry in value]
        counted = [self.count(entry, depth + 1, key) for entry, key in inner]
        values = 1 + sum(number for number, _ in counted)
        if values > self.limit:
            self._refuse(f"it stands for more than {self.limit} values, shared parts written out")
        self.known[id(value)] = found = (values, 1 + max((levels for _, levels in counted), default=0))
        return found

    def _plain(self, value: Any, name: str) -> tuple[int, int]:
        if isinstance(value, int) and self.plain and value.bit_length() > 64:
            self._refuse(f"{name or 'it'} has an integer of more than 64 bits")
        return 1 + (len(value) // _CHARACTERS if isinstance(value, (str, bytes)) else 0), 0

    def _refuse(self, why: str) -> None:
        raise CheckpointError(f"{self.source} was refused: {why}. Damaged, or made to use up the memory.")
