"""Messages of image libraries go to the log instead of the terminal."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rtdetr_tool.data.decoding import decode_image, decode_pil_image


@pytest.fixture
def damaged(tmp_path):
    """A fax image for which libtiff reports errors, but which Pillow opens."""
    path = tmp_path / "fax.tif"
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8) * 255).convert("1").save(
        path, compression="group4"
    )
    content = bytearray(path.read_bytes())
    for index in range(8, 40):
        content[index] ^= 0x5A
    path.write_bytes(content)
    return path


@pytest.fixture
def without_exif(tmp_path):
    """A TIFF with an incomplete directory, for which Pillow warns."""
    path = tmp_path / "cut.tif"
    Image.new("RGB", (64, 64)).save(path, compression="tiff_lzw")
    path.write_bytes(path.read_bytes()[:-4])
    return path


def test_messages_of_libtiff_are_logged_and_not_printed(damaged, capfd, caplog):
    with caplog.at_level(logging.DEBUG, "rtdetr_tool"):
        decode_image(damaged)
        with Image.open(damaged) as image:
            decode_pil_image(image)
    assert capfd.readouterr().err == ""
    said = [record.getMessage() for record in caplog.records]
    assert len(said) >= 2 and all(message.startswith("libtiff: ") for message in said)
    assert "at line" in said[0]  # its values are filled in


def test_a_separate_process_prints_nothing(damaged, without_exif):
    script = (
        "import sys; from PIL import Image; from rtdetr_tool.data.decoding import decode_image, image_header\n"
        "from rtdetr_tool.errors import DataError\n"
        "for path in sys.argv[1:]:\n"
        "    try: image_header(path); decode_image(path)\n"
        "    except DataError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(damaged), str(without_exif)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
