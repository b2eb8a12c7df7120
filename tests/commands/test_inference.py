"""`rtdetr inference`: the content of its results folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def weights(project):
    """Options for a checkpoint; all queries and classes are kept, because untrained weights may prefer any."""
    torch.manual_seed(0)
    project.spec["model"]["num_select"] = 16
    project.write()
    return f"inference.checkpoint={project.checkpoint()}"


def outputs(project, kind: str) -> dict[str, object]:
    root = project.folder / "results" / "inference" / kind
    return {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}


def labels(path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()]


def test_labels_images_and_coco_results_agree(project, weights):
    assert project.run("inference", weights, "inference.conf_threshold=0") == 0
    root = project.folder / "results" / "inference"
    texts, annotated = outputs(project, "labels"), outputs(project, "images_annotated")
    assert list(texts) == [f"{number}.txt" for number in range(1, 7)]
    assert list(annotated) == [f"{number}.png" for number in range(1, 7)]
    listed = json.loads((root / "images.json").read_text())
    assert listed["categories"] == [{"id": 1, "name": "cat"}]
    rows = json.loads((root / "predictions.json").read_text())
    assert rows
    for image in listed["images"]:
        number = image["file_name"].rsplit("/", 1)[1].removesuffix(".png")
        actual = labels(texts[f"{number}.txt"])
        expected = [row for row in rows if row["image_id"] == image["id"]]
        assert len(actual) == len(expected) > 0
        for fields, row in zip(actual, expected, strict=True):
            assert len(fields) == 16 and fields[0] == "cat" and row["category_id"] == 1
            left, top, right, bottom = map(float, fields[4:8])
            np.testing.assert_allclose(row["bbox"], [left, top, right - left, bottom - top], atol=2e-3)
            assert float(fields[15]) == pytest.approx(row["score"], abs=6e-4)
            assert 0 <= left <= right <= 64 and 0 <= top <= bottom <= 48
        with Image.open(annotated[f"{number}.png"]) as drawn, Image.open(project.image(int(number))) as original:
            assert drawn.size == original.size == (64, 48)
            assert np.any(np.asarray(drawn) != np.asarray(original))


def test_without_detections_label_files_are_empty_and_images_unchanged(project, weights):
    assert project.run("inference", weights, "inference.conf_threshold=1.0") == 0
    texts, annotated = outputs(project, "labels"), outputs(project, "images_annotated")
    assert len(texts) == len(annotated) == 6
    assert all(path.read_text() == "" for path in texts.values())
    for name, path in annotated.items():
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(project.folder / "images" / name)))
    assert json.loads((project.folder / "results/inference/predictions.json").read_text()) == []


def test_an_index_without_a_category_is_never_reported(project, weights):
    """Ids 1..1 as indices leave output 0 unused (num_classes 2): it must not appear as a class."""
    project.run("inference", weights, "inference.conf_threshold=0")
    for path in outputs(project, "labels").values():
        assert {fields[0] for fields in labels(path)} == {"cat"}
        assert len(labels(path)) == 8


def test_color_map_and_outline_width_are_used(project, weights):
    options = (weights, "inference.conf_threshold=0", "inference.color_map={cat: '#fa0103'}")
    assert project.run("inference", *options, "inference.outline_width=1") == 0
    thin = np.asarray(Image.open(outputs(project, "images_annotated")["1.png"]))
    assert project.run("inference", *options, "inference.outline_width=6") == 0
    thick = np.asarray(Image.open(outputs(project, "images_annotated")["1.png"]))
    count = [(pixels == (250, 1, 3)).all(-1).sum() for pixels in (thin, thick)]
    assert 0 < count[0] < count[1]


def test_an_invalid_color_is_reported_before_loading(project, capsys):
    empty = project.folder / "empty.pth"
    empty.touch()
    assert project.run("inference", f"inference.checkpoint={empty}", "inference.color_map={cat: rouge}") == 2
    said = capsys.readouterr().err
    assert "rouge" in said and "color_map.cat" in said


def test_equal_names_in_several_folders_do_not_overwrite_each_other(project, weights):
    for name in ("left", "right"):
        folder = project.folder / "more" / name
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(project.image(1 if name == "left" else 2).read_bytes())
    root = project.folder / "more"
    source = f"dataset.infer_data_sources={{image_dir: ['{root}/left', '{root}/right']}}"
    assert project.run("inference", weights, "inference.conf_threshold=0", source) == 0
    assert list(outputs(project, "labels")) == ["left/1.txt", "right/1.txt"]
    annotated = outputs(project, "images_annotated")
    assert list(annotated) == ["left/1.png", "right/1.png"]
    first, second = (path.read_bytes() for path in annotated.values())
    assert first != second


def test_is_internal_writes_a_folder_per_sequence_and_boxes_without_text(project, weights):
    for sequence, number in (("seq_a", 1), ("seq_b", 2)):
        folder = project.folder / "videos" / sequence / "images"
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(project.image(number).read_bytes())
    source = f"dataset.infer_data_sources={{image_dir: '{project.folder}/videos'}}"
    options = (weights, source, "inference.conf_threshold=0", "inference.is_internal=true")
    assert project.run("inference", *options) == 0
    root = project.folder / "results" / "inference"
    assert sorted(str(p.relative_to(root)) for p in root.rglob("0.*")) == [
        "seq_a/images_annotated/0.png",
        "seq_a/labels/0.txt",
        "seq_b/images_annotated/0.png",
        "seq_b/labels/0.txt",
    ]


def test_is_internal_does_not_overwrite_equal_names_of_one_sequence(project, weights):
    for camera in ("left", "right"):
        folder = project.folder / "videos" / "seq" / camera
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(project.image(1).read_bytes())
    source = f"dataset.infer_data_sources={{image_dir: '{project.folder}/videos'}}"
    assert project.run("inference", weights, source, "inference.is_internal=true") == 0
    root = project.folder / "results" / "inference"
    assert len(list(root.rglob("*.png"))) == 2


def test_an_image_rotated_by_exif_is_drawn_upright_with_boxes(project, weights):
    folder = project.folder / "turned"
    folder.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(project.image(1)).resize((200, 100)).save(folder / "t.jpg", exif=turned, quality=95)
    source = f"dataset.infer_data_sources={{image_dir: '{folder}'}}"
    assert project.run("inference", weights, source, "inference.conf_threshold=0") == 0
    with Image.open(outputs(project, "images_annotated")["t.jpg"]) as drawn:
        assert drawn.size == (100, 200)
    corners = np.array([fields[4:8] for fields in labels(outputs(project, "labels")["t.txt"])], dtype=float)
    assert corners[:, 2].max() <= 100 and corners[:, 3].max() <= 200 and corners[:, 3].max() > 100


def test_the_input_size_of_the_section_is_used(project, weights):
    sizes = ["inference.input_height=96", "inference.input_width=128"]
    assert project.run("inference", weights, "inference.conf_threshold=0", *sizes) == 0
    other = [labels(path) for path in outputs(project, "labels").values()]
    assert project.run("inference", weights, "inference.conf_threshold=0") == 0
    assert other != [labels(path) for path in outputs(project, "labels").values()]


def test_an_unreadable_image_is_exit_code_2_and_all_others_are_written(project, weights, capsys):
    """Exit code 1 would mean our failure; a corrupted file is invalid input."""
    images = project.folder / "images"
    (images / "2.png").write_bytes(b"damaged")
    (images / "notes.txt").write_bytes(b"text")
    assert project.run("inference", weights, "inference.conf_threshold=0") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "Error: 1 of 6 images could not be read" in said and f"Cannot read image {images}/2.png" in said
    assert "Skipping 1 file that is not an image (1 .txt)" in said and f"{images}/notes.txt" in said
    names = ["1", "3", "4", "5", "6"]
    assert list(outputs(project, "labels")) == [f"{name}.txt" for name in names]
    assert list(outputs(project, "images_annotated")) == [f"{name}.png" for name in names]
    root = project.folder / "results" / "inference"
    listed = json.loads((root / "images.json").read_text())
    assert len(listed["images"]) == 6 and listed["skipped"] == [f"{images}/notes.txt"]
    (unreadable,) = listed["unreadable"]
    assert unreadable["file_name"] == f"{images}/2.png" and "it is not an image" in unreadable["reason"]
    number_of = {image["file_name"]: image["id"] for image in listed["images"]}
    result = {row["image_id"] for row in json.loads((root / "predictions.json").read_text())}
    assert result == {number_of[f"{images}/{name}.png"] for name in names}
    last = json.loads((root / "status.json").read_text().splitlines()[-1])
    assert last["status"] == "FAILURE" and "2.png" in last["message"]
    assert last["kpi"] == {"images": 5, "detections": 40, "images_unreadable": 1, "files_skipped": 1}
