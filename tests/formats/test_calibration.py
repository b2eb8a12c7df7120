"""Calibration images from arrays, array files and folders."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from rtdetr_tool.errors import DataError, UserError
from rtdetr_tool.formats.calibration import calibration_images_from
from rtdetr_tool.spec import AugmentationSpec, DatasetSpec

SIZE, NAME = (8, 12), "export.tflite.calibration"
DATA = dataclasses.replace(
    DatasetSpec(), augmentation=dataclasses.replace(AugmentationSpec(), eval_spatial_size=list(SIZE))
)


def batches(given, count=10, batch=2) -> list[np.ndarray]:
    return [part.numpy() for part in calibration_images_from(given, DATA, SIZE, NAME).batches(count, batch)]


def test_bytes_become_0_to_1_and_floats_stay():
    images = np.arange(3 * 3 * 8 * 12, dtype=np.uint8).reshape(3, 3, *SIZE)
    found = batches(images)
    assert [len(part) for part in found] == [2, 1]
    np.testing.assert_allclose(np.concatenate(found), images / 255, atol=1e-7)
    floats = (images / 255).astype(np.float64)
    np.testing.assert_allclose(np.concatenate(batches(floats, count=2)), floats[:2], atol=1e-7)


def test_channels_may_come_last():
    images = np.random.default_rng(0).integers(0, 255, (3, 3, *SIZE), dtype=np.uint8)
    np.testing.assert_array_equal(batches(images.transpose(0, 2, 3, 1))[0], batches(images)[0])


def test_an_array_file_and_a_folder_are_read(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (3, 3, *SIZE), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    np.testing.assert_allclose(np.concatenate(batches(str(tmp_path / "images.npy"))), images / 255, atol=1e-7)
    for number, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{number}.png")
    found = np.concatenate(batches(str(tmp_path)))
    assert sorted(part.sum() for part in found) == pytest.approx(sorted(part.sum() / 255 for part in images))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 12, 8, 3), np.uint8), r"has the shape \[2, 12, 8, 3\]; expected images \[N, 3, 8, 12\] or"),
        (np.zeros((0, 3, 8, 12), np.uint8), "has the shape"),
        (np.zeros((1, 3, 8, 12), np.int64), "has the type int64"),
        (np.full((1, 3, 8, 12), 200.0), "values from 200 to 200"),
        (np.full((1, 3, 8, 12), np.nan), "values from nan"),
    ],
)
def test_other_arrays_are_refused(images, message, tmp_path):
    with pytest.raises(UserError, match=message):
        calibration_images_from(images, DATA, SIZE, NAME)
    np.save(tmp_path / "images.npy", images)
    with pytest.raises(UserError, match=message):
        calibration_images_from(str(tmp_path / "images.npy"), DATA, SIZE, NAME)


class Planted:
    def __reduce__(self):
        return os.mkdir, ("planted",)


def test_an_array_file_with_objects_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("objects.npy", np.array([Planted()]), allow_pickle=True)
    with pytest.raises(UserError, match="not an array file of numbers"):
        calibration_images_from("objects.npy", DATA, SIZE, NAME)
    assert not os.path.exists("planted")


@pytest.mark.parametrize(
    ("given", "message"),
    [("no.npy", "does not exist"), ("no_folder", "neither a folder"), ("text.npy", "not an array file"),
     (None, "INT8 requires calibration images")],
)  # fmt: skip
def test_what_is_not_there_is_named(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.npy").write_text("numbers")
    with pytest.raises(UserError, match=message):
        calibration_images_from(given, DATA, SIZE, NAME)


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no images"):
        calibration_images_from(str(tmp_path), DATA, SIZE, NAME)
