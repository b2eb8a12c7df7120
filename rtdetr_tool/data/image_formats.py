"""The image formats that are read, and the file names by which all readers find them in folders."""

from __future__ import annotations

from pathlib import PurePath

# Format -> the extensions of its files. Pillow reads more formats, among them EPS, for which it starts another program.
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

# Files that belong to a dataset beside its images: annotations, descriptions, caches of other programs.
COMPANIONS = (".txt", ".xml", ".json", ".yaml", ".yml", ".csv", ".md", ".cache", ".npy")


def is_image(name: str) -> bool:
    """Whether the extension of a file name is that of an image format; upper and lower case are equal."""
    return PurePath(name).suffix.lower() in EXTENSIONS


def is_companion(name: str) -> bool:
    """Whether a file is expected between the images of a dataset without being one."""
    return PurePath(name).suffix.lower() in COMPANIONS
