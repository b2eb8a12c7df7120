"""Cached images are the decoded ones, shared between processes, within a limit, and never stale."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from rtdetr_tool.data import image_cache
from rtdetr_tool.data.dataset import TrainDataset
from rtdetr_tool.data.decoding import decode_image
from rtdetr_tool.data.image_cache import ImageCache
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.data.transforms import TrainTransform
from rtdetr_tool.errors import DataError
from rtdetr_tool.ops.classes import ClassEntry, ClassMap


@pytest.fixture
def paths(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(4):
        pixels = rng.integers(0, 255, (20 + index, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return [str(tmp_path / f"{index}.png") for index in range(4)]


@pytest.fixture
def decoded(monkeypatch):
    """The paths of the images that were decoded."""
    seen = []
    monkeypatch.setattr(image_cache, "decode_image", lambda path, *more: seen.append(path) or decode_image(path, *more))
    return seen


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_an_image_is_decoded_once_and_is_the_same_from_the_cache(paths, decoded, kind):
    cache = ImageCache(kind, 10**6, len(paths))
    for _ in range(3):
        for index, path in enumerate(paths):
            image, expected = cache.read(index, path, None), decode_image(path)
            assert torch.equal(image, expected) and image.stride() == expected.stride()
            image.zero_()  # a sample may be changed in place
    assert decoded == paths


def test_other_processes_share_the_cache(paths, decoded, monkeypatch):
    cache = ImageCache("ram", 10**6, len(paths))
    cache.read(0, paths[0], None)
    monkeypatch.setattr(cache, "_lock", None)  # locks are only inherited by processes
    entries = cache._entries, cache._used
    other = pickle.loads(pickle.dumps({**cache.__getstate__(), "_entries": None, "_used": None}))
    worker = ImageCache.__new__(ImageCache)
    worker.__dict__.update({**other, "_entries": entries[0], "_used": entries[1]})
    assert torch.equal(worker.read(0, paths[0], None), decode_image(paths[0]))
    assert decoded == paths[:1]


def test_workers_of_a_loader_fill_one_cache(paths, decoded):
    class Images(torch.utils.data.Dataset):
        cache = ImageCache("ram", 10**6, len(paths))

        def __len__(self):
            return len(paths)

        def __getitem__(self, index):
            return int(self.cache.read(index, paths[index], None).sum())

    loader = torch.utils.data.DataLoader(Images(), num_workers=2, batch_size=1)
    sums = [int(decode_image(path).sum()) for path in paths]
    assert [int(batch) for batch in loader] == sums
    assert [Images.cache.read(index, path, None).sum().item() for index, path in enumerate(paths)] == sums
    assert decoded == []  # in this process


def test_a_changed_file_is_decoded_again(paths, decoded):
    cache = ImageCache("ram", 10**6, len(paths))
    cache.read(0, paths[0], None)
    Image.new("RGB", (8, 6), (9, 9, 9)).save(paths[0])
    os.utime(paths[0], ns=(1, 1))
    assert cache.read(0, paths[0], None).shape == (3, 6, 8)
    assert cache.read(0, paths[0], None).unique().tolist() == [9] and len(decoded) == 2


def test_the_cache_keeps_its_limit(paths, decoded):
    cache = ImageCache("disk", 20 * 30 * 3 + 10, len(paths))
    for _ in range(2):
        for index in (0, 1):
            assert torch.equal(cache.read(index, paths[index], None), decode_image(paths[index]))
    assert decoded == [paths[0], paths[1], paths[1]]
    assert os.fstat(cache._descriptor()).st_size <= 20 * 30 * 3 + 10


def test_a_full_device_ends_caching_and_not_the_run(paths, decoded, caplog, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    cache = ImageCache("disk", 10**6, len(paths))
    monkeypatch.setattr(os, "pwrite", full)
    for _ in range(2):
        assert torch.equal(cache.read(0, paths[0], None), decode_image(paths[0]))
    assert len(decoded) == 2 and caplog.text.count("Caching no more images") == 1


def test_a_missing_file_is_explained_as_without_a_cache(tmp_path):
    with pytest.raises(DataError, match="not found"):
        ImageCache("ram", 10**6, 1).read(0, str(tmp_path / "missing.png"), None)


def test_samples_of_a_dataset_are_the_same_with_a_cache(paths, decoded):
    records = [
        ImageRecord(path, index, 30, 20 + index, np.array([[2.0, 3, 12, 15]]), np.zeros(1, np.int64), np.zeros(1, bool))
        for index, path in enumerate(paths)
    ]
    transform = TrainTransform(size=(32, 32))
    plain, cached = (
        TrainDataset(records, ClassMap([ClassEntry(0, 0, "thing")], 1), transform, seed=3, cache=cache)
        for cache in (None, ImageCache("ram", 10**6, len(paths)))
    )
    for epoch in range(2):
        for index in range(len(paths)):
            (image, target), (expected, expected_target) = cached[epoch, index], plain[epoch, index]
            assert torch.equal(image, expected) and torch.equal(target.boxes, expected_target.boxes)
    assert decoded == paths
