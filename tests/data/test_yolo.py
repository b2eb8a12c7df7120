"""YOLO datasets: the content of `data.yaml` and label files, and the message for each mistake."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtdetr_tool.data.source import drop_missing_images
from rtdetr_tool.data.yolo import read_split
from rtdetr_tool.errors import DataError

from .conftest import draw_image

GOOD = "0 0.5 0.5 0.25 0.5\n"  # of 64 x 48 pixels: 24..40, 12..36


@pytest.fixture
def make(tmp_path):
    """Write a dataset with one image per entry of `labels` (None = no label file) and return its folder."""

    def write(labels: list[str | bytes | None], description: str | None = None, layout: str = "images/train") -> Path:
        root = tmp_path / "data"
        folder = root / layout
        for number, text in enumerate(labels):
            draw_image(folder / f"{number}.png", seed=number)
            if text is not None:
                label = Path(str(folder).replace("/images", "/labels")) / f"{number}.txt"
                label.parent.mkdir(parents=True, exist_ok=True)
                label.write_bytes(text.encode() if isinstance(text, str) else text)
        (root / "data.yaml").write_text(description or f"train: {layout}\nnames: [cat, dog]\n")
        return root

    return write


def rows(source) -> list[list[tuple]]:
    return [image.rows for image in source.images.values()]


def test_a_box_is_center_and_size_as_shares_of_the_image(make) -> None:
    source = read_split(str(make([GOOD + "1 0.25 0.25 0.5 0.5\n"])), "train")
    assert rows(source) == [[(24.0, 12.0, 40.0, 36.0, 0, False, 384.0), (0.0, 0.0, 32.0, 24.0, 1, False, 768.0)]]
    assert source.categories == {0: "cat", 1: "dog"} and not source.repairs
    assert [(image.width, image.height) for image in source.images.values()] == [(64, 48)]


def test_shares_are_of_the_upright_image(make) -> None:
    root = make([GOOD])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(root / "images/train/0.png", exif=exif)
    source = read_split(str(root), "train")
    assert rows(source) == [[(18.0, 16.0, 30.0, 48.0, 0, False, 384.0)]]


def test_images_without_labels_are_images_without_objects(make) -> None:
    source = read_split(str(make([GOOD, "", None, "\n  \n"])), "train")
    assert [len(result) for result in rows(source)] == [1, 0, 0, 0]
    assert source.repairs.counts == {"image_without_label": 1}


@pytest.mark.parametrize(
    ("description", "layout"),
    [
        ("train: images/train\nnames: {0: cat, 1: dog}\n", "images/train"),
        ("path: .\ntrain: [images/train]\nnames:\n  - cat\n  - dog\n", "images/train"),
        ("path: ../datasets/mine\ntrain: images/train\nnames: [cat, dog]\n", "images/train"),
        ("train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n", "train/images"),
        ("train: ./train\nnames: [cat, dog]\ndownload: |\n  import os\n  os.abort()\n", "train"),
        ("train: images\nkpt_shape: [17, 3]\nnames: [cat, dog]\n", "images"),
    ],
)
def test_splits_and_names_may_be_written_in_many_ways(make, description, layout) -> None:
    source = read_split(str(make([GOOD], description, layout)), "train")
    assert rows(source) == [[(24.0, 12.0, 40.0, 36.0, 0, False, 384.0)]] and source.categories == {0: "cat", 1: "dog"}


def test_names_are_read_literally(make) -> None:
    source = read_split(str(make([GOOD], "train: images/train\nnames: [no, 007, 1.0, on]\n")), "train")
    assert list(source.categories.values()) == ["no", "007", "1.0", "on"]


def test_valid_and_val_are_one_split(make) -> None:
    root = make([GOOD], "valid: images/train\nnames: [cat]\n")
    assert len(read_split(str(root), "val").images) == 1
    assert len(read_split(str(root / "data.yaml"), "valid").images) == 1


def test_a_text_file_may_list_the_images(make) -> None:
    root = make([GOOD, GOOD, None], "train: train.txt\nnames: [cat, dog]\n")
    (root / "train.txt").write_text("./images/train/2.png\n\n./images/train/0.png\n")
    source = read_split(str(root), "train")
    assert [os.path.basename(image.path) for image in source.images.values()] == ["2.png", "0.png"]
    assert [len(result) for result in rows(source)] == [0, 1]


def test_several_folders_are_one_split(make) -> None:
    root = make([GOOD], "train: [images/train, images/more]\nnames: [cat, dog]\n")
    draw_image(root / "images/more/deep/a.png")
    (root / "labels/more/deep").mkdir(parents=True)
    (root / "labels/more/deep/a.txt").write_text(GOOD)
    assert [len(result) for result in rows(read_split(str(root), "train"))] == [1, 1]


def test_outlines_become_the_boxes_around_them_and_are_counted(make) -> None:
    source = read_split(str(make(["1 0.25 0.5 0.5 0.25 0.75 0.75\n"])), "train")
    assert rows(source) == [[(16.0, 12.0, 48.0, 36.0, 1, False, 768.0)]]
    assert source.repairs.counts == {"outline_boxed": 1}


def test_keypoints_are_skipped_and_counted(make) -> None:
    description = "train: images/train\nkpt_shape: [2, 3]\nnames: [cat]\n"
    source = read_split(str(make([GOOD.strip() + " 0.1 0.1 2 0.2 0.2 1\n"], description)), "train")
    assert rows(source) == [[(24.0, 12.0, 40.0, 36.0, 0, False, 384.0)]]
    assert source.repairs.counts == {"keypoints_left_out": 1}


def test_boxes_beyond_the_image_are_repaired_as_those_of_coco_files_are(make) -> None:
    lines = ["0 0.5 0.5 2 0.5", "0 3 3 0.1 0.1", "0 0.5 0.5 0 0.5", "0 nan 0.5 0.1 0.1", "0 0.5 0.5 1.015625 1"]
    source = read_split(str(make(["\n".join(lines)])), "train")
    assert [row[:4] for row in rows(source)[0]] == [(0.0, 12.0, 64.0, 36.0), (-0.5, 0.0, 64.5, 48.0)]
    assert source.repairs.counts == {"box_clipped": 1, "box_outside": 1, "box_empty": 1, "box_not_finite": 1}


def test_a_label_without_an_image_is_a_missing_image(make) -> None:
    root = make([GOOD])
    (root / "labels/train/other.txt").write_text(GOOD)
    (root / "labels/train/classes.txt").write_text("cat\ndog\n")
    source = read_split(str(root), "train")
    with pytest.raises(DataError, match=r"1 of 2 image files .* do not exist: .*images/train/other\.\*"):
        drop_missing_images(source, "error")
    drop_missing_images(source, "skip")
    assert len(source.images) == 1 and source.repairs.counts == {"image_missing": 1}


def test_an_unreadable_image_is_reported_when_it_is_read(make) -> None:
    root = make([GOOD, GOOD])
    (root / "images/train/1.png").write_bytes(b"not an image")
    source = read_split(str(root), "train")
    assert [len(result) for result in rows(source)] == [1, 0] and len(source.images) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", "line 2: 4 values; expected class index"),
        ("0 0.5 0.5 0.2 0.2 0.9", r"line 2: 6 values \(a score\?"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "line 2: 8 values; expected"),
        ("cat 0.5 0.5 0.2 0.2", "line 2: not all values are numbers"),
        ("0,0.5,0.5,0.2,0.2", "not all values are numbers"),
        ("0 0,5 0,5 0,2 0,2", "not all values are numbers"),
        ("0 0.5 0.5 0.2 1_0", "not all values are numbers"),
        ("\xff\xfe 0.5 0.5 0.2 0.2", "not all values are numbers"),
        ("2 0.5 0.5 0.2 0.2", r"line 2: class index 2 is invalid; .*has 2 classes, 0 to 1\. Class indices start at 0"),
        ("-1 0.5 0.5 0.2 0.2", "class index -1"),
        ("0.5 0.5 0.5 0.2 0.2", r"class index 0\.5"),
        ("nan 0.5 0.5 0.2 0.2", "class index nan"),
        ("inf 0.5 0.5 0.2 0.2", "class index inf"),
    ],
)
def test_a_malformed_line_is_named_by_file_and_line(make, line, message) -> None:
    root = make([(GOOD + line + "\n").encode("latin-1")])
    with pytest.raises(DataError, match=message) as caught:
        read_split(str(root), "train")
    assert "labels/train/0.txt, line 2" in str(caught.value)


POSE = "train: images/train\nnames: [cat, dog]\nkpt_shape: [3, 3]\nflip_idx: [0, 2, 1]\n"
BOX = GOOD.strip()


def keypoints(source) -> list[list[tuple]]:
    return [image.keypoints for image in source.images.values()]


def test_keypoints_are_read_on_request(make) -> None:
    names = "kpt_names: {0: [nose, left_eye, right_eye]}\n"
    root = make([f"{BOX} 0.5 0.25 2 0.25 0.5 1 0.9 0.9 0\n{BOX} 0 0 0 0 0 0 0 0 0.000\n{GOOD}"], POSE + names)
    source = read_split(str(root), "train", "keypoints")
    assert keypoints(source) == [[(32.0, 12.0, 2.0, 16.0, 24.0, 1.0, 0.0, 0.0, 0.0), (), ()]]
    assert source.repairs.counts == {"keypoints_missing": 1}  # the line that has none
    assert [pose.names for pose in source.poses.values()] == [
        ("nose", "left_eye", "right_eye"),
        ("keypoint_1", "keypoint_2", "keypoint_3"),
    ]
    assert [pose.swaps for pose in source.poses.values()] == [(0, 2, 1), (0, 2, 1)]
    boxes = read_split(str(root), "train")
    assert rows(boxes) == rows(source) and not boxes.poses and not boxes.has("keypoints")


def test_keypoints_without_visibility_are_visible_unless_they_are_at_the_origin_or_negative(make) -> None:
    description = "train: images/train\nnames: [cat, dog]\nkpt_shape: [3, 2]\nkpt_names: [left ear, nose, right ear]\n"
    source = read_split(str(make([f"{BOX} 0.5 0.5 0 0 -1 0.5\n"], description)), "train", "keypoints")
    assert keypoints(source) == [[(32.0, 24.0, 2.0, *[0.0] * 6)]] and not source.repairs
    assert source.poses[1].swaps == (2, 1, 0)


def test_classes_without_names_and_flip_idx_have_no_known_sides(make) -> None:
    description = "train: images/train\nnames: [cat]\nkpt_shape: [1, 2]\nflip_idx: []\n"
    source = read_split(str(make([f"{BOX} 0.5 0.5\n"], description)), "train", "keypoints")
    assert source.poses[0].swaps is None


@pytest.mark.parametrize(("values", "repair"), [("1.5 0.5 2", "keypoint_outside"), ("0.5 0.5 3", "keypoints_malformed"),
                                                ("nan 0.5 2", "keypoints_malformed")])  # fmt: skip
def test_invalid_keypoints_are_counted_as_in_coco_files(make, values, repair) -> None:
    source = read_split(str(make([f"{BOX} {values} 0.5 0.5 2 0.5 0.5 2\n"], POSE)), "train", "keypoints")
    assert source.repairs.counts == {repair: 1}


@pytest.mark.parametrize("kind", ["boxes", "keypoints"])
@pytest.mark.parametrize("count", [1, 6, 8, 10])
def test_a_line_with_another_number_of_keypoints_is_named_by_file_and_line(make, count, kind) -> None:
    root = make([f"{BOX}{' 0.5 0.5 2' * 3}\n{BOX}{' 0.5' * count}\n"], POSE)
    message = (
        rf"0\.txt, line 2: {5 + count} values.*, optionally followed by 9 values of 3 keypoints \(x, y, visibility"
    )
    with pytest.raises(DataError, match=message):
        read_split(str(root), "train", kind)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("kpt_shape: 17", r"kpt_shape in .*data\.yaml is '17'; expected \[keypoints, values\]"),
        ("kpt_shape: [3, 4]", r"kpt_shape in .* 2 \(x, y\) or 3 \(x, y, visibility\)"),
        ("kpt_shape: [0, 3]", "kpt_shape in .* with 1 to 1000 keypoints"),
        ("kpt_shape: [1.5, 3]", "kpt_shape in "),
        ("kpt_shape: [3, 3]\nflip_idx: [0, 1]", "flip_idx in .* expected 3 indices"),
        ("kpt_shape: [3, 3]\nflip_idx: [1, 2, 0]", "flip_idx in "),
        ("kpt_shape: [3, 3]\nflip_idx: [0, 1, 3]", "flip_idx in "),
        ("kpt_shape: [3, 3]\nflip_idx: [0, 1, -1]", "flip_idx in "),
        ("kpt_shape: [3, 3]\nflip_idx: {0: 1}", "flip_idx in "),
        ("kpt_shape: [3, 3]\nkpt_names: [a, b]", "kpt_names in .* for class 0; expected 3 names"),
        ("kpt_shape: [3, 3]\nkpt_names: {1: [a, b, [c]]}", "kpt_names in .* for class 1; expected 3 names"),
        ("kpt_shape: [3, 3]\nkpt_names: eyes", "kpt_names in .* has 'eyes' for class 0"),
    ],
)
def test_an_invalid_pose_in_the_yaml_is_one_message(make, entries, message) -> None:
    root = make([GOOD], f"train: images/train\nnames: [cat, dog]\n{entries}\n")
    with pytest.raises(DataError, match=message):
        read_split(str(root), "train", "keypoints")


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("train: images/train\n", "has no valid `names`"),
        ("train: images/train\nnames: []\n", "has no valid `names`"),
        ("train: images/train\nnames: [[a], [b]]\n", "has no valid `names`"),
        ("train: images/train\nnames: {1: cat, 2: dog}\n", r"indices of `names` .* are 1, 2; expected 0 to 1"),
        ("train: images/train\nnc: 3\nnames: [cat, dog]\n", "nc is 3 in .*, but `names` has 2"),
        ("val: images/train\nnames: [cat]\n", r"no split 'train'; expected one of its splits: val"),
        ("train: images/none\nnames: [cat]\n", r"the path 'images/none', which does not exist \(tried .*images/none"),
        ("train: /etc\nnames: [cat]\n", "outside the dataset"),
        ("train: ../../other\nnames: [cat]\n", "does not exist"),
        ("train: data.yaml\nnames: [cat]\n", "a folder or a list of images"),
        ("train: [images/train\nnames: [cat]\n", r"data\.yaml, line \d is not valid YAML"),
        ("- a\n- b\n", "does not describe a YOLO dataset"),
        ("{" * 3000, "is not valid YAML"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nnames: *b\ntrain: images/train\n", "has no valid `names`"),
    ],
)
def test_an_invalid_yaml_is_one_message(make, description, message) -> None:
    with pytest.raises(DataError, match=message):
        read_split(str(make([GOOD], description)), "train")


def test_a_yaml_that_is_not_text_is_refused(make) -> None:
    root = make([GOOD])
    (root / "data.yaml").write_bytes(b"names: [\xff\xfe]")
    with pytest.raises(DataError, match="not valid UTF-8"):
        read_split(str(root), "train")


def test_paths_may_only_leave_the_folder_if_the_yaml_is_named(make, tmp_path) -> None:
    root = make([GOOD])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.yaml").write_text(f"path: {root}\ntrain: images/train\nnames: [cat, dog]\n")
    assert len(read_split(str(elsewhere / "mine.yaml"), "train").images) == 1
    (elsewhere / "data.yaml").write_text(f"train: {root}/images/train\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match="outside the dataset"):
        read_split(str(elsewhere), "train")
    (elsewhere / "data.yaml").write_text("train: list.txt\nnames: [cat, dog]\n")
    draw_image(elsewhere / "a.png")
    (elsewhere / "list.txt").write_text(f"a.png\n{root}/images/train/0.png\n")
    with pytest.raises(DataError, match="outside the dataset"):
        read_split(str(elsewhere), "train")


def test_labels_in_another_folder_are_reported_as_missing(make) -> None:
    root = make([None, None])
    (root / "annotations").mkdir()
    (root / "annotations" / "0.txt").write_text(GOOD)
    with pytest.raises(
        DataError,
        match=r"None of the 2 images .* has a label file; expected the first at .*labels/train/0\.txt",
    ):
        read_split(str(root), "train")


def test_labels_in_pixels_are_refused(make) -> None:
    with pytest.raises(DataError, match=r"None of the 2 boxes .*: 2 boxes completely outside .* fractions \(0\.\.1\)"):
        read_split(str(make(["0 320 240 100 50\n1 200 100 50 50\n"])), "train")


def test_readers_do_not_wait_for_files_that_never_end(make) -> None:
    root = make([GOOD, GOOD])
    (root / "labels/train/1.txt").unlink()
    os.mkfifo(root / "labels/train/1.txt")
    with pytest.raises(DataError, match=r"1\.txt cannot be read: .*pipe"):
        read_split(str(root), "train")
