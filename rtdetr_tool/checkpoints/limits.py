"""Limits on the content of a checkpoint: its unpacked size, the number of its values and their nesting.

A small file can expand to far more than its size: an archive by compression, tensors by strides of 0 or shared memory,
dictionaries by containing the same list many times. All of this is checked before anything is copied.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdetr_tool.errors import CheckpointError

EXPANSION, FREE = 8, 64 << 20  # content may have 8 times the bytes of the file, and 64 MiB in any case
MOST_ENTRIES = 100_000  # files in the archive: one per tensor
MOST_VALUES = 5_000_000  # of a whole file, with shared parts counted every time
MOST_METADATA = 500_000  # of those, values in the metadata
DEEPEST = 64  # nested dictionaries and lists
_CHARACTERS = 64  # of a string that count as one value
_PLAIN = (str, bytes, bool, int, float, type(None))


def check_archive(path: Path) -> None:
    """CheckpointError for a zip archive that unpacks to far more than its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile):
        return  # not an archive, or a corrupted one: reading it reports that
    if len(entries) > MOST_ENTRIES:
        raise CheckpointError(
            f"{path} was refused: its archive has {len(entries)} files; expected at most {MOST_ENTRIES}."
        )
    _check_expansion(sum(entry.file_size for entry in entries), path)


def check_content(payload: Any, path: Path) -> None:
    """CheckpointError if the content is far larger than the file."""
    counter = _Counter(MOST_VALUES, str(path))
    counter.count(payload)
    _check_expansion(counter.bytes, path)


def check_metadata_values(meta: Any, source: str) -> None:
    """CheckpointError for metadata that is not plain data, is too large or too deeply nested."""
    _Counter(MOST_METADATA, f"{source}: its metadata", plain=True).count(meta)


def check_tensor(name: str, tensor: Tensor, source: str) -> None:
    """CheckpointError for a tensor that is not stored completely, such as a sparse one."""
    odd = tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.device.type != "cpu"
    if odd:
        kind = "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        raise CheckpointError(
            f"{source} was refused: tensor {name!r} is {kind} on {tensor.device}; expected dense CPU tensors, as in "
            "`model.state_dict()`."
        )


def stored_numbers(tensors: Mapping[str, Tensor]) -> int:
    """The number of stored elements; shared memory counts once."""
    stored: dict[int, int] = {}
    for tensor in tensors.values():
        storage = tensor.untyped_storage()
        numbers = stored.get(storage.data_ptr(), 0) + tensor.numel()
        stored[storage.data_ptr()] = min(numbers, storage.nbytes() // tensor.element_size())
    return sum(stored.values())


def _check_expansion(size: int, path: Path) -> None:
    file_size = path.stat().st_size
    if size > max(EXPANSION * file_size, file_size + FREE):
        raise CheckpointError(
            f"{path} was refused: it has {file_size} bytes and unpacks to {size}, more than {EXPANSION} times as many. "
            "The file is corrupted or was crafted to exhaust memory; otherwise save it without compression."
        )


class _Counter:
    """Counts values, shared parts every time, in time proportional to the size of the file."""

    def __init__(self, limit: int, source: str, plain: bool = False) -> None:
        self.limit, self.source, self.plain = limit, source, plain
        self.bytes = 0  # of tensors
        self.known: dict[int, tuple[int, int]] = {}  # id -> (values, levels); (0, 0) while it is being counted

    def count(self, value: Any, depth: int = 0, name: str = "") -> tuple[int, int]:
        """The number of values in `value` and of their nested levels."""
        if isinstance(value, _PLAIN):
            return self._plain(value, name)
        if id(value) in self.known:
            known = self.known[id(value)]
            if not known[0]:
                self._refuse("it contains itself")
            if depth + known[1] > DEEPEST:
                self._refuse(f"it is nested more than {DEEPEST} levels deep")
            return known
        if depth > DEEPEST:
            self._refuse(f"it is nested more than {DEEPEST} levels deep")
        if isinstance(value, Tensor) and not self.plain:
            check_tensor(name, value, self.source)
            self.bytes += value.numel() * value.element_size()
        elif self.plain and not isinstance(value, (dict, list, tuple)):
            self._refuse(f"{name or 'it'} is a {type(value).__name__}, not plain data")
        self.known[id(value)] = (0, 0)
        inner: list[tuple[Any, str]] = []
        if isinstance(value, Mapping):
            inner = [part for key, entry in value.items() for part in ((key, ""), (entry, str(key)[:60]))]
        elif isinstance(value, (list, tuple, set)):
            inner = [(entry, name) for entry in value]
        counted = [self.count(entry, depth + 1, key) for entry, key in inner]
        values = 1 + sum(number for number, _ in counted)
        if values > self.limit:
            self._refuse(f"it has more than {self.limit} values, counting shared parts every time")
        self.known[id(value)] = result = (values, 1 + max((levels for _, levels in counted), default=0))
        return result

    def _plain(self, value: Any, name: str) -> tuple[int, int]:
        if isinstance(value, int) and self.plain and value.bit_length() > 64:
            self._refuse(f"{name or 'it'} has an integer of more than 64 bits")
        return 1 + (len(value) // _CHARACTERS if isinstance(value, (str, bytes)) else 0), 0

    def _refuse(self, why: str) -> None:
        raise CheckpointError(
            f"{self.source} was refused: {why}. The file is corrupted or was crafted to exhaust memory."
        )
