"""The grid of augmented images shows masks and keypoints, and a broken image does not end the command."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from rtdetr_tool.data.dataset import TrainDataset
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.data.transforms import TrainTransform
from rtdetr_tool.ops.classes import ClassEntry, ClassMap
from rtdetr_tool.ops.masks import encode
from rtdetr_tool.visualize import palette_color
from rtdetr_tool.workflows.augmentation_preview import augmentation_grid

PLAIN = TrainTransform((64, 64), distortion_prob=0.0, iou_crop_prob=0.0, zoom_out_prob=0.0, flip_prob=0.0)


def dataset(tmp_path, kind: str) -> TrainDataset:
    """A black image with one object that has a mask of its right half, and a keypoint."""
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 64)).save(path)
    mask = np.zeros((64, 64), np.uint8)
    mask[8:56, 32:56] = 1
    record = ImageRecord(
        str(path), 1, 64, 64, np.array([[8.0, 8, 56, 56]]), np.zeros(1, np.int64), np.zeros(1, bool),
        np.array([2304.0]), masks=[encode(mask)], keypoints=np.array([[[20.0, 40, 2]]]),
    )  # fmt: skip
    built = TrainDataset([record], ClassMap([ClassEntry(0, 0, "thing")], 1), PLAIN, on_bad_image="error", kind=kind)
    built._swaps = np.zeros((1, 1), np.int64) if kind == "keypoints" else None
    return built


@pytest.mark.parametrize(("kind", "lit", "dark"), [("masks", (44, 40), (20, 40)), ("keypoints", (20, 40), (44, 40))])
def test_masks_and_keypoints_have_the_color_of_their_class(tmp_path, kind, lit, dark) -> None:
    shown = Image.open(io.BytesIO(augmentation_grid(dataset(tmp_path, kind), 4)))
    assert shown.size == (72, 72)
    expected = np.array(palette_color(0)) * (0.4 if kind == "masks" else 1.0)
    assert np.abs(np.array(shown.getpixel((lit[0] + 4, lit[1] + 4))) - expected).max() < 60
    assert max(shown.getpixel((dark[0] + 4, dark[1] + 4))) < 40


def test_an_unreadable_image_is_a_warning(tmp_path, caplog) -> None:
    built = dataset(tmp_path, "boxes")
    (tmp_path / "a.png").write_bytes(b"broken")
    assert augmentation_grid(built, 4) is None
    assert "Skipping the preview" in caplog.text
