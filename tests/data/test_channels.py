"""Images with an exact number of channels: files, values, and what training does with them."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from rtdetr_tool.data import array_files
from rtdetr_tool.data.build import build_eval_dataset, build_loader, build_train_dataset
from rtdetr_tool.data.channels import ChannelMismatch
from rtdetr_tool.data.decoding import decode_image, image_size
from rtdetr_tool.data.folder import find_images
from rtdetr_tool.data.photometric import Distortion
from rtdetr_tool.data.pixels import PixelFormat
from rtdetr_tool.data.preprocess import resize
from rtdetr_tool.errors import DataError, SpecError, UserError
from rtdetr_tool.spec import spec_from_dict

tifffile = pytest.importorskip("tifffile", reason="requires tifffile")
HEIGHT, WIDTH = 20, 30


def random_values(channels: int, dtype=np.uint8) -> np.ndarray:
    values = np.random.default_rng(channels).integers(0, np.iinfo(dtype).max, (HEIGHT, WIDTH, channels), dtype=dtype)
    values[0, 0], values[0, 1] = 0, np.iinfo(dtype).max
    return values


def read(path, channels: int, *value_range: float) -> np.ndarray:
    return decode_image(path, pixels=PixelFormat(channels, value_range or None)).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (4, "RGBA")])
def test_pillow_images_keep_their_channels(tmp_path, channels, mode):
    values = random_values(channels)
    Image.fromarray(values[..., 0] if channels == 1 else values, mode).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png", channels), values)


@pytest.mark.parametrize("layout", ["samples", "planes", "pages"])
def test_tiff_bands_are_samples_planes_or_pages(tmp_path, layout):
    values = random_values(5)
    if layout == "samples":
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig")
    else:
        planar = {"planarconfig": "separate"} if layout == "planes" else {}
        tifffile.imwrite(tmp_path / "a.tif", values.transpose(2, 0, 1), photometric="minisblack", **planar)
    assert np.array_equal(read(tmp_path / "a.tif", 5), values)
    assert image_size(tmp_path / "a.tif") == (WIDTH, HEIGHT)


def test_the_fourth_band_of_a_tiff_is_not_dropped_as_pillow_does(tmp_path):
    values = random_values(4)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unspecified"])
    assert Image.open(tmp_path / "a.tif").mode == "RGB"
    assert np.array_equal(read(tmp_path / "a.tif", 4), values)


@pytest.mark.parametrize("channels_first", [False, True])
def test_arrays_are_images(tmp_path, channels_first):
    values = random_values(6)
    np.save(tmp_path / "a.npy", values.transpose(2, 0, 1) if channels_first else values)
    assert np.array_equal(read(tmp_path / "a.npy", 6), values)
    assert image_size(tmp_path / "a.npy") == (WIDTH, HEIGHT)
    np.save(tmp_path / "gray.npy", values[..., 0])
    assert np.array_equal(read(tmp_path / "gray.npy", 1)[..., 0], values[..., 0])


@pytest.mark.parametrize("suffix", ["npy", "tif"])
def test_values_of_16_bits_are_scaled_by_their_type_or_the_given_range(tmp_path, suffix):
    values = random_values(5, np.uint16)
    path = tmp_path / f"a.{suffix}"
    np.save(path, values) if suffix == "npy" else tifffile.imwrite(
        path, values, photometric="minisblack", planarconfig="contig"
    )
    expected = np.rint(values / 65535 * 255)
    assert np.array_equal(read(path, 5), expected)
    expected = np.rint((values.astype(float) - 1000) / 3001 * 255).clip(0, 255)
    assert np.array_equal(read(path, 5, 1000, 4001), expected)
    lows, highs = np.arange(5) * 100.0, 20001 + np.arange(5) * 1002.0
    expected = np.rint((values - lows) / (highs - lows) * 255).clip(0, 255)
    pairs = np.stack([lows, highs], axis=1).ravel().tolist()
    assert np.array_equal(read(path, 5, *pairs), expected)


def test_gray_png_of_16_bits_is_one_channel_and_repeated_for_three_with_a_range(tmp_path):
    values = random_values(1, np.uint16)[..., 0]
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png", 1)[..., 0], np.rint(values / 65535 * 255))
    rgb = read(tmp_path / "a.png", 3, 0, 1000)
    assert np.array_equal(rgb, np.repeat(np.rint(values.clip(0, 1000) / 1000 * 255)[..., None], 3, axis=2))


def test_floats_are_0_to_1_or_have_a_range(tmp_path):
    values = np.random.default_rng(0).random((HEIGHT, WIDTH, 2)).astype(np.float32)
    values[3, 3] = np.nan
    np.save(tmp_path / "a.npy", values)
    assert np.array_equal(read(tmp_path / "a.npy", 2), np.rint(np.nan_to_num(values.astype(float)) * 255))
    np.save(tmp_path / "a.npy", values * 4000)
    with pytest.raises(DataError, match=r"a\.npy has float32 values from .* expected 0 to 1. Set dataset.value_range"):
        read(tmp_path / "a.npy", 2)
    assert read(tmp_path / "a.npy", 2, 0, 4000).max() > 250


@pytest.mark.parametrize(
    ("mode", "channels", "found"),
    [("RGB", 1, "3 channels"), ("RGB", 4, "3 channels"), ("L", 4, "1 channel"), ("RGBA", 1, "4 channels"),
     ("P", 1, "3 channels"), ("CMYK", 4, "3 channels")],
)  # fmt: skip
def test_another_number_of_channels_is_one_error(tmp_path, mode, channels, found):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, (WIDTH, HEIGHT)).save(path)
    expected = rf"{path} has {found} \({mode}\), but model.num_channels is {channels}. Set model.num_channels="
    with pytest.raises(ChannelMismatch, match=expected):
        read(path, channels)


def test_another_number_of_bands_is_one_error(tmp_path):
    np.save(tmp_path / "a.npy", random_values(6))
    tifffile.imwrite(tmp_path / "a.tif", random_values(6), photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(tmp_path / "two.tif", random_values(2), photometric="minisblack", planarconfig="contig")
    for name, channels in (("a.npy", 5), ("a.tif", 5), ("a.tif", 3), ("a.npy", 3), ("two.tif", 1)):
        with pytest.raises(ChannelMismatch, match=rf"{name} has . channels.* model.num_channels is {channels}"):
            read(tmp_path / name, channels)


def test_damaged_arrays_are_data_errors(tmp_path):
    np.save(tmp_path / "whole.npy", random_values(5))
    content = (tmp_path / "whole.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"a\.npy: it is truncated"):
        read(tmp_path / "a.npy", 5)
    np.save(tmp_path / "b.npy", np.array([["a", "b"]]))
    with pytest.raises(DataError, match=r"b\.npy: it is an array of <U1"):
        read(tmp_path / "b.npy", 5)
    tifffile.imwrite(tmp_path / "c.tif", random_values(5), photometric="minisblack", planarconfig="contig")
    (tmp_path / "c.tif").write_bytes((tmp_path / "c.tif").read_bytes()[:200])
    with pytest.raises(DataError, match=r"Cannot read image .*c\.tif"):
        read(tmp_path / "c.tif", 5)


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_resizing_is_that_of_each_channel(channels):
    image = torch.from_numpy(random_values(channels)).permute(2, 0, 1)
    for size in ((13, 17), (40, 64)):
        together = resize(image, size)
        alone = torch.cat([resize(image[index : index + 1].contiguous(), size) for index in range(channels)])
        assert (together.int() - alone.int()).abs().max() <= 1


def test_only_distortions_without_color_are_applied():
    distort = Distortion(1.1, 0.6, 1.4, 0.04, False, (2, 0, 1))
    assert distort.for_channels(5) == Distortion(brightness=1.1, contrast=0.6, contrast_first=False)
    values = random_values(5)
    bright = (values * np.float32(1.1)).clip(0, 255).astype(np.uint8)
    expected = (bright * 0.6 + bright.mean() * 0.4).clip(0, 255)
    actual = distort(torch.from_numpy(values).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    assert np.abs(actual - expected).max() <= 1


@pytest.fixture
def spec(tmp_path):
    """A spec with three images of five bands in TIFF files."""
    images, annotations = [], []
    for number in (1, 2, 3):
        values = np.random.default_rng(number).integers(0, 255, (48, 64, 5), dtype=np.uint8)
        tifffile.imwrite(tmp_path / f"{number}.tif", values, photometric="minisblack", planarconfig="contig")
        images.append({"id": number, "file_name": f"{number}.tif"})
        annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": [8, 8, 20, 20], "area": 400})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    source = {"image_dir": str(tmp_path), "json_file": str(tmp_path / "labels.json")}
    size = {"train_spatial_size": [64, 64], "eval_spatial_size": [64, 64], "multi_scales": []}
    dataset = {"train_data_sources": [source], "val_data_sources": source, "num_classes": 2, "batch_size": 3,
               "workers": 0, "cache": "ram", "augmentation": size}  # fmt: skip
    return spec_from_dict({"results_dir": str(tmp_path / "r"), "dataset": dataset, "model": {"num_channels": 5}})


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_have_all_channels_and_the_skipped_distortions_are_named_once(spec, caplog, workers):
    caplog.set_level(logging.INFO)
    train = build_train_dataset(spec.dataset, pixels=PixelFormat(5))
    assert caplog.text.count("Skipping distortions of saturation, hue and channel order") == 1
    assert next(iter(build_loader(train, spec.dataset, training=True))).images.shape == (3, 5, 64, 64)
    first, again = train[0][0], train[0][0]  # the second one from the cache
    assert torch.equal(first, again) and first.shape == (5, 64, 64)
    val = build_eval_dataset(spec.dataset, pixels=PixelFormat(5))
    assert next(iter(build_loader(val, spec.dataset, training=False))).images.shape == (3, 5, 64, 64)


def test_training_stops_at_an_image_with_another_number_of_channels(spec):
    with pytest.raises(ChannelMismatch, match=r"has 5 channels, but model.num_channels is 4"):
        build_train_dataset(spec.dataset, pixels=PixelFormat(4))[0]


def test_a_missing_tifffile_is_named_before_training(spec, monkeypatch):
    monkeypatch.setattr(array_files, "tiff_supported", lambda: False)
    with pytest.raises(UserError, match=r'1\.tif: .* pip install "rtdetr-tool\[multispectral\]"'):
        build_train_dataset(spec.dataset, pixels=PixelFormat(5))


def test_array_files_in_folders_are_images_only_if_asked_for(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", np.zeros((8, 8), np.uint8))
    assert [path[-5:] for path in find_images(str(tmp_path))] == ["a.png"]
    assert [path[-5:] for path in find_images(str(tmp_path), arrays=True)] == ["a.png", "b.npy"]


@pytest.mark.parametrize(
    ("value_range", "message"),
    [([0.0, 1.0, 2.0], "dataset.value_range: expected 2 items or 10, two per channel .* but got 3"),
     ([5.0, 5.0], r"dataset.value_range: \[5.0, 5.0\] is invalid")],
)  # fmt: skip
def test_a_wrong_value_range_is_a_spec_error(value_range, message):
    with pytest.raises(SpecError, match=message):
        spec_from_dict({"model": {"num_channels": 5}, "dataset": {"value_range": value_range}}, "train")
