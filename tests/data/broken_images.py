"""A generated corpus of broken image files, as from downloads, disks, cameras and attackers."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image

FORMATS = ("jpeg", "png", "bmp", "gif", "tiff", "webp", "ppm", "tga", "jpeg2000", "avif")
CUTS = (0.0, 0.01, 0.05, 0.2, 0.5, 0.9, 0.999)


@cache
def intact_images() -> dict[str, bytes]:
    """One intact file of noise per format; noise, so that no part of it can be guessed."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    result = {}
    for kind in FORMATS:
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, kind)
        result[kind] = buffer.getvalue()
    return result


def broken_images() -> dict[str, bytes]:
    """Name -> content; all are corrupted, but some so little that a decoder may still read them."""
    whole = intact_images()
    return dict(_cut(whole)) | dict(_wrong(whole)) | dict(_pngs()) | dict(_headers()) | dict(_exif(whole["jpeg"]))


def _cut(whole: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    for kind, content in whole.items():
        for share in CUTS:
            yield f"cut-{share}.{kind}", content[: int(len(content) * share)]


def _wrong(whole: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    yield "empty.png", b""
    yield "text.jpg", b"<html>404 Not Found</html>"
    yield "zeros.jpg", bytes(4096)
    yield "ones.png", b"\xff" * 4096
    yield "postscript.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\nshowpage\n"
    for kind, content in whole.items():
        yield f"magic.{kind}", b"\0\0\0\0" + content[4:]
        yield f"hole.{kind}", content[:100] + bytes(len(content) - 200) + content[-100:]
        yield f"other-head.{kind}", whole["png" if kind != "png" else "jpeg"][:32] + content[32:]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *between: bytes, data: bytes = b"", depth: int = 8, color: int = 2) -> bytes:
    """A PNG with this header, these chunks and this (uncompressed) data."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(between) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _pngs() -> Iterator[tuple[str, bytes]]:
    bomb = zlib.compress(bytes(30_000_000), 9)
    pixels = b"".join(b"\0" + bytes(3 * 64) for _ in range(48))
    yield "text-bomb.png", png(64, 48, chunk(b"zTXt", b"Comment\0\0" + bomb), data=pixels)
    yield "itxt-bomb.png", png(64, 48, chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb), data=pixels)
    yield "profile-bomb.png", png(64, 48, chunk(b"iCCP", b"icc\0\0" + bomb), data=pixels)
    yield "data-bomb.png", png(64, 48, data=bytes(30_000_000))
    yield "no-size.png", png(0, 0, data=pixels)
    yield "no-width.png", png(0, 48, data=pixels)
    yield "huge.png", png(2**31 - 1, 2**31 - 1, data=pixels)
    yield "wide.png", png(2**31 - 1, 1, data=pixels)
    yield "too-large.png", png(13_000, 13_000, data=pixels)
    yield "short-data.png", png(64, 48, data=pixels[:100])
    yield "bad-depth.png", png(64, 48, data=pixels, depth=3)
    yield "bad-color.png", png(64, 48, data=pixels, color=5)
    yield "no-palette.png", png(64, 48, data=pixels, color=3)
    yield "long-chunk.png", png(64, 48)[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT" + bytes(100)
    yield "bad-checksum.png", bytes(b ^ 0xFF if i == 30 else b for i, b in enumerate(png(64, 48, data=pixels)))
    text = zlib.compress(b"x" * 900_000)
    texts = [chunk(b"zTXt", b"key%d\0\0" % number + text) for number in range(80)]
    yield "many-texts.png", png(64, 48, *texts, data=pixels)


def _headers() -> Iterator[tuple[str, bytes]]:
    """Headers with sizes far larger than the file."""
    for name, width, height in (("huge.bmp", 60_000, 60_000), ("negative.bmp", -5, -(2**31))):
        sizes = (200, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        yield name, b"BM" + struct.pack("<IHHIIiiHHIIiiII", *sizes)
    yield "huge.ppm", b"P6\n99999 99999\n255\n" + bytes(64)
    yield "negative.ppm", b"P6\n-64 48\n255\n" + bytes(64)
    yield "digits.ppm", b"P6\n" + b"9" * 5000 + b" 1\n255\n"
    yield "huge.gif", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(64)
    yield "huge.jpg", b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 17, 8, 65535, 65535, 3) + bytes(9) + b"\xff\xd9"
    entries = [(256, 4, 1, 60_000), (257, 4, 1, 60_000), (258, 3, 1, 8), (259, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 9)]
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    yield "huge.tif", b"II*\0" + struct.pack("<I", 8) + body
    yield "loop.tif", b"II*\0" + struct.pack("<I", 8) + body[:-4] + struct.pack("<I", 8)
    yield "many-tags.tif", b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 65535) + b"\xff" * 4000
    yield "long-tag.tif", b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 270, 2, 2**32 - 1, 8) + bytes(4)


def _exif(jpeg: bytes) -> Iterator[tuple[str, bytes]]:
    blocks = {
        "garbage": b"II*\0\xff\xff\xff\xff garbage",
        "loop": b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0",
        "text": b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",
        "ninety": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x5a\0\0\0\0\0\0\0",
        "cut": b"II*\0\x08\0",
    }
    for name, block in blocks.items():
        data = b"Exif\0\0" + block
        yield f"exif-{name}.jpg", jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + jpeg[2:]
