"""Supported image formats and their file extensions."""

from __future__ import annotations

from pathlib import PurePath

# Format -> file extensions. Pillow supports more formats, among them EPS, for which it runs another program.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "AVIF": (".avif", ".avifs"),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "PCX": (".pcx",),
    "SGI": (".sgi", ".bw", ".rgb", ".rgba"),
    "ICO": (".ico",),
}
EXTENSIONS = tuple(extension for extensions in FORMATS.values() for extension in extensions)

# Other files that belong to datasets: annotations, descriptions, caches of other programs.
COMPANIONS = (".txt", ".xml", ".json", ".yaml", ".yml", ".csv", ".md", ".cache", ".npy")


def is_image(name: str) -> bool:
    """Whether a file name has the extension of a supported image format, ignoring case."""
    return PurePath(name).suffix.lower() in EXTENSIONS


def is_companion(name: str) -> bool:
    """Whether a non-image file is normal in the image folder of a dataset."""
    return PurePath(name).suffix.lower() in COMPANIONS
