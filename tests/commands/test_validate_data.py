"""`rtdetr validate_data` on the command line: tables, files and exit code."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def sound(project):
    """A project with different images and labels for training and validation."""
    held_out = project.folder / "held_out"
    held_out.mkdir()
    rng = np.random.default_rng(5)
    for number in (1, 2):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(held_out / f"{number}.png")
    content = {
        **project.coco, "images": project.coco["images"][:2], "annotations": project.coco["annotations"][:2],
    }  # fmt: skip
    (project.folder / "held_out.json").write_text(json.dumps(content))
    source = {"image_dir": str(held_out), "json_file": str(project.folder / "held_out.json")}
    project.spec["dataset"] |= {"val_data_sources": source, "test_data_sources": source}
    project.write()
    return project


def result(project) -> dict:
    return json.loads((project.folder / "results" / "validate_data" / "report.json").read_text())


def found(project) -> dict[tuple[str, str], int]:
    """(kind, split) -> count."""
    return {(entry["kind"], entry["split"]): entry["count"] for entry in result(project)["findings"]}


def page(project) -> str:
    return (project.folder / "results" / "validate_data" / "report.html").read_text()


def images_of(text: str) -> list[Image.Image]:
    """The images with findings."""
    text = text.partition("<h2>Sample images</h2>")[0]
    return [
        Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r'"data:image/jpeg;base64,([^"]+)"', text)
    ]


def test_valid_data_is_exit_code_0_with_the_usual_files(sound, capsys):
    assert sound.run("validate_data", "dataset.workers=2") == 0
    assert result(sound) == {
        "usable": True,
        "splits": {
            split: {
                "images": count, "images_without_objects": 0, "objects": count, "crowd_regions": 0,
                "objects_by_class": {"cat": count},
            }
            for split, count in (("train", 6), ("val", 2))
        },
        "findings": [],
    }  # fmt: skip
    folder = sound.folder / "results" / "validate_data"
    assert {path.name for path in folder.iterdir()} == {
        "augmented.jpg", "experiment.yaml", "log.txt", "plots", "report.html", "report.json", "status.json",
    }  # fmt: skip
    assert sound.status("validate_data")[-1]["status"] == "SUCCESS"
    text = capsys.readouterr().err
    assert "No problems found" in text and "Skipping the test data" in text


def test_any_spec_with_one_split_is_accepted(sound):
    for nothing in ("null", "[{image_dir: '', json_file: ''}]"):
        train = f"dataset.train_data_sources={nothing}"
        assert sound.run("validate_data", train, "evaluate.checkpoint=nowhere.pth") == 0
        assert list(result(sound)["splits"]) == ["val"]


def test_datasets_of_other_formats_are_checked_the_same_way(sound):
    root = sound.folder / "yolo"
    for split, numbers in (("train", (1, 2, 3)), ("val", (3, 4))):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for number in numbers:
            shutil.copy(sound.image(number), root / "images" / split)
            (root / "labels" / split / f"{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n" * number)
    (root / "images" / "train" / "1.png").write_bytes(b"\x89PNG")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    for split in ("train", "val", "test"):
        del sound.spec["dataset"][f"{split}_data_sources"]
    sound.spec["dataset"] |= {"dataset_dir": str(root)}
    del sound.spec["dataset"]["num_classes"]
    sound.write()
    assert sound.run("validate_data") == 0
    kinds = found(sound)
    assert kinds[("image_replaced", "train")] == 1 and kinds[("image_in_train", "val")] == 1
    assert kinds[("object_twice", "train")] == 3 and kinds[("object_twice", "val")] == 5


def test_a_spec_without_labeled_images_is_refused(project, capsys):
    nothing = [f"dataset.{split}_data_sources=null" for split in ("train", "val", "test")]
    assert project.run("validate_data", *nothing) == 2
    text = capsys.readouterr().err
    assert "dataset.train_data_sources or dataset.val_data_sources" in text and "required by `validate_data`" in text


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_an_unreadable_image_is_only_an_error_if_it_would_stop_the_run(sound, capsys, content):
    sound.image(3).write_bytes(content)
    assert sound.run("validate_data") == 0
    assert found(sound) == {("image_replaced", "train"): 1}
    assert sound.run("validate_data", "dataset.on_bad_image=error") == 2
    assert found(sound) == {("image_unreadable", "train"): 1}
    assert re.search(r"train: 1 images that cannot be read \(Cannot read image \S+3\.png", capsys.readouterr().err)
    assert sound.status("validate_data")[-1]["status"] == "FAILURE"
    (sound.folder / "held_out" / "2.png").write_bytes(content)
    assert sound.run("validate_data") == 2
    assert ("image_unreadable", "val") in found(sound)


def test_a_split_of_unreadable_images_is_an_error(sound):
    for number in range(1, 7):
        sound.image(number).write_bytes(b"")
    assert sound.run("validate_data") == 2
    assert found(sound) == {("image_replaced", "train"): 6, ("unusable", "train"): 1}


def test_missing_images_are_counted_in_training_and_an_error_in_validation(sound):
    sound.image(2).unlink()
    assert sound.run("validate_data") == 0
    assert found(sound) == {("image_missing", "train"): 1}
    (sound.folder / "held_out" / "1.png").unlink()
    assert sound.run("validate_data") == 2
    assert found(sound) == {("image_missing", "train"): 1, ("unusable", "val"): 1}


def test_a_broken_annotation_file_of_one_split_does_not_hide_the_other(sound):
    sound.image(2).unlink()
    (sound.folder / "held_out.json").write_text('{"images": [')
    assert sound.run("validate_data", "dataset.test_data_sources=null") == 2
    assert found(sound) == {("image_missing", "train"): 1, ("unusable", "val"): 1}
    assert "not valid JSON" in result(sound)["findings"][0]["examples"][0]


def test_sizes_that_differ_from_the_file_are_reported(sound):
    sound.coco["images"][1]["width"] = 640
    sound.write()
    assert sound.run("validate_data", "dataset.on_bad_image=error") == 2
    assert found(sound) == {("image_size_differs", "train"): 1}
    assert "64x48 pixels, but 640x48 in its annotations" in page(sound)
    assert len(images_of(page(sound))) == 1


def test_duplicate_images_are_found_within_and_between_splits(sound):
    shutil.copy(sound.image(1), sound.image(4))
    shutil.copy(sound.image(5), sound.folder / "held_out" / "2.png")
    assert sound.run("validate_data") == 0
    assert found(sound) == {("image_in_train", "val"): 1, ("image_twice", "train"): 1}
    examples = {entry["kind"]: entry["examples"] for entry in result(sound)["findings"]}
    assert examples["image_twice"] == [f"{sound.image(4)} = {sound.image(1)}"]
    assert examples["image_in_train"] == [f"{sound.folder / 'held_out' / '2.png'} = {sound.image(5)}"]


def test_images_listed_for_training_and_validation_are_counted_once(project):
    assert project.run("validate_data") == 0
    assert found(project) == {("image_in_train", "val"): 6}


def test_suspicious_boxes_are_counted_and_drawn(sound):
    boxes = sound.coco["annotations"]
    boxes[0]["bbox"] = [50, 40, 60, 60]  # clipped
    boxes[1]["bbox"] = [5, 5, 0, 9]  # dropped
    boxes[2] |= {"bbox": [5, 5, 0.4, 9]}  # narrower than a pixel of the input, which is as large as the image
    boxes.append({**boxes[3], "id": 8, "bbox": [8, 8, 20, 20.1]})
    boxes += [{**boxes[4], "id": 10 + n, "bbox": [2 * n, 2 * n, 9, 9]} for n in range(8)]
    sound.write()
    assert sound.run("validate_data") == 0
    assert found(sound) == {
        ("box_clipped", "train"): 1, ("box_empty", "train"): 1, ("box_tiny", "train"): 1, ("object_twice", "train"): 1,
        ("too_many_objects", "train"): 1, ("empty_images", "train"): 1,
    }  # fmt: skip
    drawn = images_of(page(sound))
    assert len(drawn) == 5 and all(image.size == (420, 315) for image in drawn)
    assert re.findall(r"[0-9]\.png, annotations\[[0-9]\]", page(sound)) == [
        "2.png, annotations[1]",
        "1.png, annotations[0]",
    ]


def test_a_clipped_box_is_drawn_in_red_as_labeled(sound):
    Image.new("RGB", (64, 48)).save(sound.image(1))
    sound.coco["annotations"][0]["bbox"] = [30, 20, 90, 90]
    sound.write()
    assert sound.run("validate_data") == 0
    (drawn,) = images_of(page(sound))
    scale = 420 / 64
    edge = np.asarray(drawn).astype(int)[
        round(40 * scale), round(29 * scale) : round(31 * scale)
    ]  # left side of the box
    red, green, blue = edge[edge[:, 0].argmax()]
    assert red > 150 and green < 90 and blue < 90


def test_classes_without_objects_are_named(sound):
    sound.coco["categories"] += [{"id": 2, "name": "dog"}, {"id": 3, "name": "cow"}]
    sound.coco["annotations"] = [
        {"id": n, "image_id": 1 + n % 6, "category_id": 1, "bbox": [n % 40, 3, 20, 20], "area": 400, "iscrowd": 0}
        for n in range(100)
    ] + [{"id": 200, "image_id": 1, "category_id": 2, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}]
    sound.write()
    held_out = json.loads((sound.folder / "held_out.json").read_text())
    held_out["categories"] = sound.coco["categories"]
    held_out["annotations"][0]["category_id"] = 3
    (sound.folder / "held_out.json").write_text(json.dumps(held_out))
    assert sound.run("validate_data", "dataset.num_classes=4", "model.num_queries=300") == 0
    examples = {(entry["kind"], entry["split"]): entry["examples"] for entry in result(sound)["findings"]}
    assert examples[("class_absent", "train")] == ["cow"] and examples[("class_absent", "val")] == ["dog"]
    assert examples[("class_imbalance", "train")] == ["dog: 1, cat: 100"]
    assert examples[("class_not_trained", "val")] == ["cow"]


def test_training_data_without_an_object_is_an_error(sound):
    sound.coco["annotations"] = []
    sound.write()
    assert sound.run("validate_data") == 2
    assert ("no_objects", "train") in found(sound)


@pytest.mark.parametrize(
    ("orientation", "size", "declared", "kind"),
    [
        (6, (64, 48), (48, 64), None),  # the file is 64 wide, upright 48
        (6, (64, 48), (64, 48), "exif_not_applied"),
        (6, (64, 64), (64, 64), "exif_unclear"),
        (3, (64, 48), (64, 48), "exif_unclear"),
    ],
)
def test_images_annotated_before_exif_rotation_are_detected_by_their_size(sound, orientation, size, declared, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, "gray").save(sound.image(1), exif=exif)
    sound.coco["images"][0] |= {"width": declared[0], "height": declared[1]}
    sound.write()
    assert sound.run("validate_data") == 0
    assert found(sound) == ({} if kind is None else {(kind, "train"): 1})


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.targets += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_is_self_contained_and_has_no_scripts(sound):
    evil = '<script>alert(1)</script>".png'
    sound.image(1).rename(sound.image(1).with_name(evil.replace("/", "_")))
    sound.coco["images"][0]["file_name"] = evil.replace("/", "_")
    sound.coco["annotations"].append({**sound.coco["annotations"][0], "id": 77})
    sound.write()
    assert sound.run("validate_data") == 0
    links = _Links()
    links.feed(page(sound))
    assert links.targets and all(target.startswith(("data:image/", "#")) for target in links.targets)
    assert "script" not in links.tags


def test_the_number_of_images_is_limited(sound):
    sound.coco["annotations"] += [{**entry, "id": 50 + n} for n, entry in enumerate(sound.coco["annotations"])]
    sound.write()
    for number in (0, 2, 60):
        assert sound.run("validate_data", f"validate_data.num_pictures={number}") == 0
        assert len(images_of(page(sound))) == min(number, 6)


def test_sample_images_show_the_labels_of_each_split(sound):
    for number in (0, 2, 6):
        assert sound.run("validate_data", f"validate_data.num_samples={number}") == 0
        shown = page(sound).partition("<h2>Sample images</h2>")[2]
        captions = re.findall(r"<b>(train|val): 1 objects</b>", shown)
        assert captions == ["train"] * (number // 2) + ["val"] * min(number // 2, 2)


def test_the_grid_shows_augmented_images_with_their_boxes(sound):
    grid = sound.folder / "results" / "validate_data" / "augmented.jpg"
    assert sound.run("validate_data", "validate_data.num_augmented=0") == 0 and not grid.exists()
    size = "dataset.augmentation.train_spatial_size=[64,96]"
    plain = ("validate_data.num_augmented=5", size, "dataset.augmentation.policy=none")
    assert sound.run("validate_data", *plain) == 0
    shown = Image.open(grid)
    assert shown.size == (3 * 100 + 4, 2 * 68 + 4)  # five images in three columns, with gaps
    sample = sound.folder / sound.coco["images"][0]["file_name"]
    first = np.asarray(shown.crop((4, 4, 100, 68)), float)
    original = np.asarray(Image.open(next(sound.folder.rglob(sample.name))).resize((96, 64)), float)
    assert np.corrcoef(first.ravel(), original.ravel())[0, 1] > 0.5
    assert sound.run("validate_data", *plain[:2], "dataset.augmentation.policy=strong") == 0
    assert not np.array_equal(first, np.asarray(Image.open(grid).crop((4, 4, 100, 68)), float))


def test_results_are_written_to_the_folder_of_the_section(sound):
    assert sound.run("validate_data", f"validate_data.results_dir={sound.folder / 'elsewhere'}") == 0
    assert (sound.folder / "elsewhere" / "report.html").is_file()
    assert not (sound.folder / "results").exists()


def test_classes_that_differ_only_in_case_are_reported_once(sound, capsys):
    sound.coco["categories"].append({"id": 2, "name": "CAT"})
    sound.coco["annotations"][0]["category_id"] = 2
    sound.write()
    assert sound.run("validate_data", "dataset.num_classes=3") == 0
    assert [key for key in found(sound) if key[0] == "category_confusable"] == [("category_confusable", "train")]
    assert result(sound)["splits"]["train"]["objects_by_class"] == {"cat": 5, "CAT": 1}
    assert "'cat' and 2 'CAT'" in " ".join(capsys.readouterr().err.split())
