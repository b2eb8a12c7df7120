"""Any broken image file gives either an image or a `DataError` with its path."""

from __future__ import annotations

import ast
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rtdetr_tool.data import decoding, pixels
from rtdetr_tool.data.decoding import MAX_PIXELS, decode_image, decode_pil_image, image_header, image_size
from rtdetr_tool.errors import DataError

from .broken_images import broken_images, intact_images, png

PACKAGE = Path(decoding.__file__).parents[1]
# Harmless corruption: the broken part is not needed for the pixels, or the format cannot detect it.
READABLE = {"exif-garbage.jpg", "exif-loop.jpg", "exif-text.jpg", "exif-ninety.jpg", "exif-cut.jpg", "data-bomb.png"}
MEGABYTES_ALLOWED = 2000

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:Image size"),  # Pillow's limit is lower than ours
]


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def outcome(path) -> str:
    """`read`, or the message of the DataError; other exceptions fail the test."""
    try:
        image = decode_image(path)
    except DataError as error:
        return str(error)
    assert image.dtype.is_floating_point is False and image.shape[0] == 3 and min(image.shape) >= 1
    return "read"


def test_the_corpus_gives_images_or_data_errors_within_the_memory_limit(tmp_path) -> None:
    corpus = broken_images()
    assert len(corpus) > 120
    before = peak_megabytes()
    read = set()
    for name, content in corpus.items():
        path = tmp_path / name
        path.write_bytes(content)
        message = outcome(path)
        if message == "read":
            read.add(name)
        else:
            assert str(path) in message and "\n" not in message, name
    assert read >= READABLE
    empty_or_cut = {name for name in read if name.startswith(("cut-0.0.", "cut-0.01.", "cut-0.2", "text", "zeros"))}
    assert empty_or_cut == set()
    assert peak_megabytes() - before < 500  # of the 2 GB, of which a quarter is torch


def test_the_images_that_the_corpus_is_made_from_are_readable(tmp_path) -> None:
    for name, content in intact_images().items():
        (tmp_path / name).write_bytes(content)
        assert outcome(tmp_path / name) == "read", name


def test_an_image_with_too_many_pixels_is_refused_before_decoding(tmp_path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(13_000, 9_300))
    with pytest.raises(DataError, match=rf"bomb\.png: its size of 13000x9300 is above the limit of {MAX_PIXELS}"):
        decode_image(path)
    path.write_bytes(png(100_000, 100_000))
    with pytest.raises(DataError, match=rf"above the limit of {MAX_PIXELS}.*bomb"):
        image_size(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_what_is_not_a_file_is_refused_without_waiting(tmp_path, monkeypatch) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)
        listener.bind("socket.png")
        for name in ("fifo.png", "socket.png", "/dev/zero", "/dev/tty", "."):
            ended: list[str] = []
            thread = threading.Thread(target=lambda name=name, to=ended: to.append(outcome(name)), daemon=True)
            thread.start()
            thread.join(120)
            assert ended and f"Cannot read image {name}: " in ended[0], name
    for function in (image_size, image_header):
        with pytest.raises(DataError, match=r"fifo\.png: it is a pipe, socket or device, not a file"):
            function(tmp_path / "fifo.png")


def test_invalid_paths_are_data_errors_too(tmp_path) -> None:
    (tmp_path / "file").touch()
    inside = [tmp_path / name for name in ("x" * 300, "a\0b.png", "file/a.png")]
    for path in (*inside, "\udcff.png", "", "\ud800"):
        with pytest.raises(DataError):
            decode_image(path)


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root can read everything")
def test_a_file_that_may_not_be_read_reports_it(tmp_path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(DataError, match=r"a\.png: Permission denied\."):
        decode_image(tmp_path / "a.png")


def test_reading_an_image_starts_no_program(tmp_path, monkeypatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a program was started"))
    with pytest.raises(DataError, match="format is not one of"):
        decode_image(tmp_path / "a.eps")


def test_images_are_opened_in_one_place_only() -> None:
    result = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("Image.open", "torchvision.io", "cv2.imread")
    }
    assert result == {"data/decoding.py"}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "I;16", "F"])
def test_an_image_read_in_strips_is_the_same_as_at_once(tmp_path, monkeypatch, mode) -> None:
    rng = np.random.default_rng(1)
    if mode in ("I;16", "F"):
        values = rng.integers(0, 65536, (40, 30)).astype(np.uint16 if mode == "I;16" else np.float32)
        image = Image.fromarray(values)
    else:
        image = Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.tif", exif=exif)
    at_once = decode_image(tmp_path / "a.tif")
    monkeypatch.setattr(pixels, "_STRIP_PIXELS", 7 * 30)
    assert at_once.shape == (3, 30, 40) and bool((decode_image(tmp_path / "a.tif") == at_once).all())


def damage(data, contents: dict[str, bytes]) -> bytearray:
    """A file of one of the formats with bytes changed, and parts removed, repeated or replaced."""
    content = bytearray(contents[data.draw(st.sampled_from(sorted(contents)))])
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, max(0, min(len(content) - 1, data.draw(st.sampled_from([64, 512, 10**6]))))))
        kind = data.draw(st.sampled_from(["set", "cut", "delete", "double", "insert"]))
        length = data.draw(st.integers(1, 64))
        if kind == "set" and content:
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at:]
        elif kind == "delete":
            del content[at : at + length]
        elif kind == "double":
            content[at:at] = content[at : at + length]
        else:
            content[at:at] = data.draw(st.binary(max_size=8))
    return content


def check_damage(folder: Path, data) -> None:
    path = folder / "damaged"
    path.write_bytes(damage(data, intact_images()))
    message = outcome(path)
    assert message == "read" or str(path) in message
    try:
        image_header(path)
    except DataError as error:
        assert str(path) in str(error)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_corruption_gives_an_image_or_a_data_error(tmp_path_factory, data) -> None:
    check_damage(tmp_path_factory.getbasetemp(), data)


@pytest.mark.parametrize("tag", [256, 257], ids=["width", "height"])
def test_a_tiff_file_without_pixels_is_refused(tmp_path, tag) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "empty.tiff")
    content = bytearray((tmp_path / "empty.tiff").read_bytes())
    first = struct.unpack_from("<I", content, 4)[0]
    entry = next(at for at in range(first + 2, len(content), 12) if struct.unpack_from("<H", content, at)[0] == tag)
    content[entry + 8 : entry + 12] = bytes(4)
    (tmp_path / "empty.tiff").write_bytes(content)
    with pytest.raises(DataError, match=r"Cannot read image .*empty.tiff"):
        decode_image(tmp_path / "empty.tiff")


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_a_pil_image_without_pixels_is_refused(size) -> None:
    for mode in ("RGB", "L", "I;16"):
        with pytest.raises(DataError, match=f"An image of {size[0]}x{size[1]} has no pixels"):
            decode_pil_image(Image.new(mode, size))


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None)
@given(data=st.data())
def test_random_corruption_gives_an_image_or_a_data_error_many_times(tmp_path_factory, data) -> None:
    check_damage(tmp_path_factory.getbasetemp(), data)


LARGEST = """
import re, sys
from rtdetr_tool.data.decoding import decode_image
image = decode_image(sys.argv[1])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]  # getrusage counts the parent, too
print(tuple(image.shape), int(peak) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [("rgb.jpg", {"progressive": True, "subsampling": 0}), ("p.png", {})])
def test_the_largest_image_allowed_is_read_in_two_gigabytes(tmp_path, name, options) -> None:
    height = 10_000
    mode = "P" if name == "p.png" else "RGB"
    Image.new(mode, (MAX_PIXELS // height, height)).save(tmp_path / name, **options)
    run = subprocess.run([sys.executable, "-c", LARGEST, str(tmp_path / name)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("(3, 10000, 12000)")
    assert int(run.stdout.split()[-1]) < MEGABYTES_ALLOWED
