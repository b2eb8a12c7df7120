from __future__ import annotations

import gc
import pickle

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from rtdetr_tool.data.loader import DetectionLoader, start_worker
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.data.serialized import SerializedRecords


def make_records(counts, seed: int = 0) -> list[ImageRecord]:
    rng = np.random.default_rng(seed)
    return [
        ImageRecord(
            path=f"folder/bild_ä_{number}.jpg" * (number % 3),
            image_id=int(rng.integers(0, 2**40)),
            width=int(rng.integers(1, 5000)),
            height=int(rng.integers(1, 5000)),
            boxes=rng.random((count, 4)),
            labels=rng.integers(0, 80, count),
            iscrowd=rng.random(count) < 0.5,
            area=rng.random(count),
        )
        for number, count in enumerate(counts)
    ]


def same(a: ImageRecord, b: ImageRecord) -> bool:
    plain = (a.path, a.image_id, a.width, a.height) == (b.path, b.image_id, b.width, b.height)
    return plain and all(
        np.array_equal(getattr(a, name), getattr(b, name)) and getattr(a, name).dtype == getattr(b, name).dtype
        for name in ("boxes", "labels", "iscrowd", "area")
    )


@given(st.lists(st.integers(0, 5), max_size=12))
def test_records_are_returned_unchanged(counts) -> None:
    records = make_records(counts)
    packed = SerializedRecords(records)
    assert len(packed) == len(records)
    assert all(same(a, b) for a, b in zip(packed, records, strict=True))
    if records:
        assert same(packed[-1], records[-1])


def test_invalid_positions_are_index_errors() -> None:
    packed = SerializedRecords(make_records([1, 2]))
    for index in (2, -3):
        with pytest.raises(IndexError):
            packed[index]


def _mark(packed: SerializedRecords) -> None:
    packed.labels[0] = 4321


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_sees_the_same_memory(method) -> None:
    packed = SerializedRecords(make_records([3, 0, 2]))
    assert all(tensor.is_shared() for tensor in packed.tensors)
    process = mp.get_context(method).Process(target=_mark, args=(packed,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert packed[0].labels[0] == 4321  # written by the other process


def test_handing_it_to_a_spawned_process_sends_handles_and_not_the_data() -> None:
    from multiprocessing.reduction import ForkingPickler

    packed = SerializedRecords(make_records([50] * 2000))
    assert packed.nbytes > 4_000_000
    assert len(ForkingPickler.dumps(packed)) < 10_000
    assert len(pickle.dumps(make_records([50] * 2000))) > 4_000_000


def test_a_record_is_a_view_and_not_a_copy() -> None:
    packed = SerializedRecords(make_records([3, 2]))
    assert torch.from_numpy(packed[1].boxes).data_ptr() == packed.boxes[3:].data_ptr()


class _Frozen(torch.utils.data.Dataset):
    """The number of objects that the garbage collector of the process ignores."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return gc.get_freeze_count()


def test_the_garbage_collector_of_a_worker_does_not_touch_the_memory_it_shares() -> None:
    loader = DetectionLoader(
        _Frozen(), num_workers=1, collate_fn=list, worker_init_fn=start_worker, multiprocessing_context="fork"
    )
    before = gc.get_freeze_count()
    assert all(count > 10_000 for batch in loader for count in batch)
    assert gc.get_freeze_count() == before
