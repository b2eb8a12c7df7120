from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as torchvision_functional
from torchvision.transforms.v2.functional import _geometry

from rtdetr_tool.data import preprocess
from rtdetr_tool.data.decoding import decode_image, image_size
from rtdetr_tool.data.preprocess import (
    draw_scale,
    input_size,
    letterbox_size,
    load_image,
    prepare_image,
    resize,
    resize_batch,
    to_float,
)
from rtdetr_tool.errors import DataError

UPRIGHT = np.zeros((30, 40, 3), dtype=np.uint8)
UPRIGHT[:10, :15] = (255, 0, 0)
UPRIGHT[20:, 25:] = (0, 255, 0)
UPRIGHT[20:, :5] = (0, 0, 255)

# How a camera stores the upright image under each EXIF orientation (EXIF 2.3, tag 0x0112).
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


def pixels(path) -> np.ndarray:
    return decode_image(path).permute(1, 2, 0).numpy()


def save_turned(path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(np.ascontiguousarray(STORED[orientation])).save(path, exif=exif, **options)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_the_same_upright_image(tmp_path, orientation, suffix) -> None:
    path = tmp_path / f"a.{suffix}"
    save_turned(path, orientation)
    difference = np.abs(pixels(path).astype(int) - UPRIGHT)
    assert difference.mean() < 12 if suffix == "jpg" else difference.max() == 0
    assert image_size(path) == (40, 30)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "bmp", "ppm", "gif"])
def test_every_lossless_format_gives_the_same_pixels_which_may_be_written_to(tmp_path, suffix) -> None:
    Image.fromarray(UPRIGHT).save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    image = decode_image(tmp_path / f"a.{suffix}")
    assert np.array_equal(image.permute(1, 2, 0).numpy(), UPRIGHT)
    image.zero_()
    assert np.array_equal(pixels(tmp_path / f"a.{suffix}"), UPRIGHT)


def test_annotations_made_without_the_exif_rotation_get_the_stored_image(tmp_path) -> None:
    save_turned(tmp_path / "a.png", 6)  # stored 30 wide, 40 high; upright 40 wide, 30 high
    assert decode_image(tmp_path / "a.png", (40, 30)).shape == (3, 30, 40)
    stored = decode_image(tmp_path / "a.png", (30, 40))
    assert np.array_equal(stored.permute(1, 2, 0).numpy(), STORED[6])
    with pytest.raises(DataError, match=r"a\.png is 40x30 pixels, but 41x30 in its annotations"):
        decode_image(tmp_path / "a.png", (41, 30))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_corrupted_exif_block_counts_as_upright(tmp_path) -> None:
    Image.fromarray(UPRIGHT).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert decode_image(tmp_path / "a.jpg").shape == (3, 30, 40)


GRAY = np.linspace(0, 255, 64 * 4).reshape(4, 64).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path, suffix) -> None:
    Image.fromarray(GRAY.astype(np.uint16) * 257).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(pixels(tmp_path / f"a.{suffix}"), np.repeat(GRAY[..., None], 3, axis=2))


def test_big_endian_sixteen_bit_gray_reads_like_little_endian(tmp_path) -> None:
    values = (GRAY.astype(np.uint16) * 257).astype(">u2")
    Image.frombytes("I;16B", (64, 4), values.tobytes()).save(tmp_path / "a.tif")
    assert np.array_equal(pixels(tmp_path / "a.tif")[..., 0], GRAY)


def test_thirty_two_bit_and_float_gray_are_scaled(tmp_path) -> None:
    Image.fromarray(GRAY.astype(np.int32) * 257).save(tmp_path / "i.tif")
    Image.fromarray(GRAY.astype(np.int32) * 100_000).save(tmp_path / "wide.tif")
    Image.fromarray((GRAY / 255).astype(np.float32)).save(tmp_path / "unit.tif")
    Image.fromarray(GRAY.astype(np.float32)).save(tmp_path / "byte.tif")
    Image.fromarray(GRAY.astype(np.float32) * 10 - 1000).save(tmp_path / "any.tif")
    for name in ("i", "wide", "unit", "byte", "any"):
        assert np.abs(pixels(tmp_path / f"{name}.tif")[..., 0].astype(int) - GRAY).max() <= 1, name


def test_floats_that_are_not_numbers_become_black(tmp_path) -> None:
    values = np.full((4, 4), 0.5, dtype=np.float32)
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif")[0, 0].tolist() == [0, 0, 0] and pixels(tmp_path / "a.tif")[1, 1, 0] == 128


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [
        ("RGB", "png", 0),
        ("RGBA", "png", 0),
        ("CMYK", "tif", 0),
        ("CMYK", "jpg", 40),
        ("P", "png", 0),
        ("YCbCr", "tif", 3),
    ],
)
def test_color_modes_give_the_same_colors(tmp_path, mode, suffix, tolerance) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(UPRIGHT).convert(mode).save(path)
    assert np.abs(pixels(path).astype(int) - UPRIGHT).max() <= tolerance


def test_lab_images_are_converted(tmp_path) -> None:
    lab = Image.frombytes("LAB", (2, 2), bytes([255, 0, 0] * 4))
    lab.save(tmp_path / "a.tif")
    assert (pixels(tmp_path / "a.tif") > 240).all()


def test_gray_gray_with_alpha_and_bilevel_become_rgb(tmp_path) -> None:
    Image.fromarray(GRAY).save(tmp_path / "l.png")
    Image.fromarray(GRAY).convert("LA").save(tmp_path / "la.png")
    Image.fromarray(GRAY > 127).save(tmp_path / "one.png")
    expected = np.repeat(GRAY[..., None], 3, axis=2)
    assert np.array_equal(pixels(tmp_path / "l.png"), expected)
    assert np.array_equal(pixels(tmp_path / "la.png"), expected)
    assert np.array_equal(pixels(tmp_path / "one.png"), (expected > 127) * np.uint8(255))


def test_a_palette_with_transparency_keeps_its_colors(tmp_path) -> None:
    Image.fromarray(UPRIGHT).convert("P").save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    assert np.array_equal(pixels(tmp_path / "a.png"), UPRIGHT)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_the_first_frame_of_an_animation_is_used(tmp_path, suffix) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert pixels(tmp_path / f"a.{suffix}")[0, 0].tolist() == [255, 0, 0]


def test_the_first_image_of_a_camera_file_with_a_preview_is_used(tmp_path) -> None:
    Image.new("RGB", (16, 8), "red").save(
        tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")]
    )
    assert pixels(tmp_path / "a.jpg").shape == (8, 16, 3) and pixels(tmp_path / "a.jpg")[0, 0, 0] > 250


def damaged() -> dict[str, bytes]:
    buffers = {}
    for kind in ("jpeg", "png", "bmp", "gif", "tiff", "webp", "ppm"):
        buffer = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, kind)
        buffers[kind] = buffer.getvalue()
    cut = {f"cut.{kind}": data[: len(data) // 2] for kind, data in buffers.items()}
    png = bytearray(buffers["png"])
    png[40] ^= 0xFF  # a broken checksum makes Pillow raise SyntaxError
    others = {"empty.jpg": b"", "text.jpg": b"not an image", "head.jpg": buffers["jpeg"][:20], "sum.png": bytes(png)}
    return {**cut, **others}


@pytest.mark.parametrize("name", sorted(damaged()))
def test_a_corrupted_file_is_a_data_error_with_its_path(tmp_path, name) -> None:
    path = tmp_path / name
    path.write_bytes(damaged()[name])
    with pytest.raises(DataError, match=name):
        decode_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_corruption_never_raises_another_exception(tmp_path_factory, data) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    buffer = io.BytesIO()
    Image.fromarray(UPRIGHT).save(buffer, data.draw(st.sampled_from(["png", "jpeg", "tiff", "gif", "bmp", "webp"])))
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        assert decode_image(path).shape[0] == 3
    except DataError as error:
        assert str(path) in str(error)


def test_an_unreasonably_large_image_is_a_data_error(tmp_path, monkeypatch) -> None:
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"a\.png.*decompression bomb"):
        decode_image(tmp_path / "a.png")


def test_missing_files_empty_files_and_folders_have_different_messages(tmp_path) -> None:
    (tmp_path / "empty.png").touch()
    for name, message in (("nowhere.png", "not found"), ("empty.png", "file is empty"), ("", "is a directory")):
        with pytest.raises(DataError, match=message):
            decode_image(tmp_path / name)


def test_stretching_gives_the_size_and_the_scale_of_the_original() -> None:
    prepared = prepare_image(torch.zeros(3, 30, 40, dtype=torch.uint8), (64, 96))
    assert prepared.image.shape == (3, 64, 96) and prepared.image.dtype == torch.uint8
    assert prepared.original_size == (30, 40) and prepared.box_scale == (40.0, 30.0)


@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([(64, 64), (64, 96), (96, 32)]))
def test_a_letterboxed_box_comes_back_exactly(height, width, size) -> None:
    side = max(size)
    prepared = prepare_image(torch.zeros(3, height, width, dtype=torch.uint8), size, preserve_aspect_ratio=True)
    assert prepared.image.shape == (3, side, side) and input_size(size, True) == (side, side)
    inner = letterbox_size((height, width), side)
    assert max(inner) == side and min(inner) >= 1
    x, y = prepared.box_scale
    # The corner of the image in the padded input is the image's corner, and the origin is the origin.
    assert abs(inner[1] / side * x - width) < 1e-9 * width and abs(inner[0] / side * y - height) < 1e-9 * height


def test_letterboxing_pads_right_or_below_with_black_and_keeps_the_shape(tmp_path) -> None:
    white = torch.full((3, 30, 40), 255, dtype=torch.uint8)
    wide = prepare_image(white, (64, 64), True).image
    assert (wide[:, :48] == 255).all() and (wide[:, 48:] == 0).all()
    high = prepare_image(white.transpose(1, 2), (64, 64), True).image
    assert (high[:, :, :48] == 255).all() and (high[:, :, 48:] == 0).all()
    Image.fromarray(np.full((30, 40, 3), 255, np.uint8)).save(tmp_path / "a.png")
    assert torch.equal(load_image(tmp_path / "a.png", (64, 64), True).image, wide)


def test_to_float_only_divides_by_255() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    images = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(to_float(images), images.float() / 255)
    assert to_float(images).is_contiguous(memory_format=torch.channels_last)
    assert images[0, 0, 15, 15] == 255  # the batch itself is not changed


def test_the_drawn_size_depends_on_seed_and_step_alone() -> None:
    scales = [480, 512, [544, 960], 640]
    drawn = [draw_scale(scales, 7, step) for step in range(400)]
    assert drawn == [draw_scale(scales, 7, step) for step in range(400)]
    assert drawn != [draw_scale(scales, 8, step) for step in range(400)]
    assert {*drawn} == {(480, 480), (512, 512), (544, 960), (640, 640)}
    assert all(60 < drawn.count(size) < 140 for size in set(drawn))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("vectorized", [True, False])
def test_an_image_is_resized_exactly_as_by_torchvision_in_its_memory_format(
    monkeypatch, vectorized, channels_last
) -> None:
    monkeypatch.setattr(preprocess, "_has_uint8_kernel", lambda: vectorized)
    monkeypatch.setattr(_geometry, "_do_native_uint8_resize_on_cpu", lambda interpolation: vectorized)
    rng = np.random.default_rng(0)
    for old_height, old_width, height, width in [(48, 64, 64, 64), (1, 9, 20, 3), (30, 1, 7, 40), (5, 5, 1, 2)] + [
        rng.integers(2, 90, 4).tolist() for _ in range(50)
    ]:
        shape = (old_height, old_width, 3) if channels_last else (3, old_height, old_width)
        image = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
        image = image.permute(2, 0, 1) if channels_last else image
        expected = torchvision_functional.resize(image, [height, width], antialias=True)
        resized = resize(image, (height, width))
        assert torch.equal(resized, expected) and resized.dtype == torch.uint8
        if min(old_height, old_width, height, width) > 1:  # the format of a single row is ambiguous
            assert resized.stride() == expected.stride()


def test_a_batch_is_resized_bilinearly_to_height_and_width() -> None:
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 16, 32)
    bigger = resize_batch(ramp, (32, 96))
    assert bigger.shape == (1, 3, 32, 96)
    assert (bigger[0, 0, 0].diff() >= 0).all() and len(
        bigger[0, 0, 0].unique()
    ) > 64  # nearest neighbor would give 32 steps
    assert resize_batch(ramp, (16, 32)) is ramp
