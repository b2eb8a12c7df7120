"""All readers that find images by name use the same list of image formats."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtdetr_tool.data.coco import read_source
from rtdetr_tool.data.decoding import decode_image
from rtdetr_tool.data.folder import find_images, search
from rtdetr_tool.data.image_formats import EXTENSIONS, FORMATS, is_image
from rtdetr_tool.data.voc import read_split as read_voc
from rtdetr_tool.data.yolo import read_split as read_yolo
from rtdetr_tool.errors import DataError, MachineError

DOCS = (Path(__file__).parents[2] / "docs" / "validate_data.md").read_text(encoding="utf-8")
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)

SIZES = {"ICO": {"sizes": [(32, 24)]}}  # icons would become square


def written_as(kind: str, path: Path) -> Path:
    """A small image in this format, with any of its extensions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(PIXELS)
    if path.suffix == ".pfm":
        image = image.convert("F")
    with path.open("wb") as file:  # Pillow would select another format for some extensions
        image.save(file, format="MPO" if path.suffix == ".mpo" else kind, **SIZES.get(kind, {}))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder with one image per extension, named after it, and other files."""
    folder = tmp_path_factory.mktemp("formats") / "images"
    for kind, extensions in FORMATS.items():
        for extension in extensions:
            written_as(kind, folder / f"{extension[1:]}{extension}")
    for name in ("clip.mp4", "clip2.MP4", "photo.heic"):
        (folder / name).write_bytes(b"no image")
    (folder / "notes.txt").write_text("")
    return folder


def test_the_list_has_every_extension_that_pillow_knows_for_these_formats():
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
    assert known <= set(EXTENSIONS) and {".avif", ".jp2", ".mpo", ".apng", ".pbm", ".ico", ".tga", ".pcx"} <= known
    assert len(set(EXTENSIONS)) == len(EXTENSIONS)
    assert is_image("A.AVIF") and not is_image("a.mp4") and not is_image("jpg")


def test_the_documentation_lists_the_same_extensions():
    paragraph = DOCS.partition("## Images")[2].partition("\n\n- ")[0]
    assert sorted(re.findall(r"`(\.\w+)`", paragraph)) == sorted(EXTENSIONS)


def test_every_extension_is_found_in_a_folder_and_read(images):
    result = find_images(str(images))
    assert sorted(Path(path).suffix for path in result) == sorted(EXTENSIONS)
    for path in result:
        assert tuple(decode_image(path).shape) == (3, 24, 32), path


def test_files_that_are_not_images_are_counted_and_named(images, caplog):
    assert [Path(path).name for path in search(str(images)).skipped] == [
        "clip.mp4", "clip2.MP4", "notes.txt", "photo.heic",
    ]  # fmt: skip
    find_images(str(images))
    assert "Skipping 4 files that are not images (2 .mp4, 1 .txt, 1 .heic)" in caplog.text
    assert str(images / "clip.mp4") in caplog.text


def test_a_folder_of_videos_is_reported_with_its_content(tmp_path):
    (tmp_path / "a.mov").touch()
    with pytest.raises(DataError, match=r"contains no images.*\.jpg.*Skipping 1 file that is not an image \(1 \.mov\)"):
        find_images(str(tmp_path))


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path, monkeypatch):
    written_as("PNG", tmp_path / "a.png")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)  # permissions do not apply to root
    with pytest.raises(MachineError, match="locked cannot be read: Permission denied"):
        find_images(str(tmp_path))


def test_a_linked_folder_is_named_as_skipped(tmp_path):
    written_as("PNG", tmp_path / "one" / "a.png")
    written_as("PNG", tmp_path / "two" / "b.png")
    (tmp_path / "one" / "more").symlink_to(tmp_path / "two", target_is_directory=True)
    result = search(str(tmp_path / "one"))
    assert result.images == [str(tmp_path / "one" / "a.png")]
    assert result.skipped == [str(tmp_path / "one" / "more")]


def test_yolo_reads_every_extension_and_counts_the_rest(images):
    root = images.parent
    (root / "data.yaml").write_text("train: images\nnames: [thing]\n")
    for path in find_images(str(images)):
        label = root / "labels" / f"{Path(path).stem}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text("0 0.5 0.5 0.5 0.5\n")
    source = read_yolo(str(root), "train")
    assert sorted(Path(image.path).suffix for image in source.images.values()) == sorted(EXTENSIONS)
    assert all((image.width, image.height, len(image.rows)) == (32, 24, 1) for image in source.images.values())
    assert source.repairs.counts["file_not_an_image"] == 3
    assert str(images / "photo.heic") in source.repairs.examples["file_not_an_image"]


def test_voc_reads_every_extension_and_counts_the_rest(images, tmp_path):
    (tmp_path / "JPEGImages").symlink_to(images, target_is_directory=True)
    (tmp_path / "Annotations").mkdir()
    for path in find_images(str(images)):
        (tmp_path / "Annotations" / f"{Path(path).stem}.xml").write_text(
            "<annotation><object><name>thing</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax>"
            "</bndbox></object></annotation>"
        )
    source = read_voc(str(tmp_path), "")
    assert sorted(Path(image.path).suffix for image in source.images.values()) == sorted(EXTENSIONS)
    assert all((image.width, image.height, len(image.rows)) == (32, 24, 1) for image in source.images.values())
    assert source.repairs.counts["file_not_an_image"] == 3


def test_the_first_of_two_voc_images_with_one_name_is_used_and_the_other_counted(tmp_path):
    written_as("PNG", tmp_path / "a.png")
    written_as("BMP", tmp_path / "a.bmp")
    (tmp_path / "a.xml").write_text("<annotation></annotation>")
    (tmp_path / "labels.txt").write_text("thing\n")
    source = read_voc(str(tmp_path), "")
    assert [Path(image.path).name for image in source.images.values()] == ["a.bmp"]
    assert source.repairs.counts["image_of_same_name"] == 1 and source.repairs.counts["file_not_an_image"] == 0


def test_coco_reads_every_extension(images, tmp_path):
    listed = [
        {"id": number, "file_name": Path(path).name, "width": 32, "height": 24}
        for number, path in enumerate(find_images(str(images)))
    ]
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"images": listed, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}))
    source = read_source(str(images), str(file))
    assert sorted(Path(image.path).suffix for image in source.images.values()) == sorted(EXTENSIONS)
