"""Keypoints from files to targets: read only on request, moved like their image, left and right exchanged by flips."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from rtdetr_tool.data.build import build_eval_dataset, build_loader, build_train_dataset
from rtdetr_tool.data.coco import read_source
from rtdetr_tool.data.window import Placement, Window
from rtdetr_tool.errors import DataError, MissingSplit
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.spec import AugmentationSpec, DatasetSpec

WIDTH, HEIGHT = 90, 60
NAMES, SKELETON = ["nose", "left_eye", "right_eye"], [[1, 2], [1, 3]]
POINTS = [20, 30, 2, 30, 20, 1, 10, 20, 2]  # the left eye is on the right


def write(folder, annotations, categories=None):
    """An image with white pixels at the keypoints, and one without objects."""
    (folder / "images").mkdir(parents=True)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for annotation in annotations:
        values = annotation.get("keypoints") or []
        for x, y in zip(values[::3], values[1::3], strict=True) if len(values) % 3 == 0 else ():
            if 0 <= x < WIDTH and 0 <= y < HEIGHT:
                pixels[int(y), int(x)] = 255
    Image.fromarray(pixels).save(folder / "images" / "a.png")
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / "b.png")
    defaults = {"image_id": 1, "category_id": 1, "bbox": [5, 10, 30, 30], "area": 900, "iscrowd": 0}
    content = {
        "images": [
            {"id": i, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT} for i, name in ((1, "a"), (2, "b"))
        ],
        "annotations": [{"id": i, **defaults, **annotation} for i, annotation in enumerate(annotations, 1)],
        "categories": categories or [{"id": 1, "name": "face", "keypoints": NAMES, "skeleton": SKELETON},
                                     {"id": 2, "name": "ball"}],
    }  # fmt: skip
    (folder / "a.json").write_text(json.dumps(content))
    return str(folder / "images"), str(folder / "a.json")


@pytest.fixture
def files(tmp_path):
    return write(tmp_path, [{"keypoints": POINTS}, {"category_id": 2, "bbox": [50, 20, 30, 30]}])


def spec_of(files, kind="default", **augmentation):
    source = {"image_dir": files[0], "json_file": files[1]}
    return DatasetSpec(
        train_data_sources=[source], val_data_sources=source, num_classes=3, dataset_type=kind, workers=0, batch_size=2,
        augmentation=AugmentationSpec(
            **{"train_spatial_size": [48, 64], "eval_spatial_size": [48, 64], "multi_scales": [],
               "scale_jitter_prob": 0.0, "distortion_prob": 0.0, "iou_crop_prob": 0.0, "zoom_out_prob": 0.0,
               "flip_prob": 0.0, **augmentation}
        ),
    )  # fmt: skip


def test_keypoints_are_read_only_when_asked_for(files):
    plain, full = read_source(*files), read_source(*files, kind="keypoints")
    assert not plain.has("keypoints") and not plain.poses
    assert full.has("keypoints") and not full.repairs
    assert full.images[1].keypoints == [tuple(map(float, POINTS)), ()]
    pose = full.poses[1]
    assert pose.names == tuple(NAMES) and pose.skeleton == ((0, 1), (0, 2)) and pose.swaps == (0, 2, 1)


@pytest.mark.parametrize("kind", ["default", "serialized"])
@pytest.mark.parametrize("keep_ratio", [False, True])
def test_evaluation_targets_have_relative_keypoints_and_the_truth_those_of_the_file(files, kind, keep_ratio):
    dataset = build_eval_dataset(spec_of(files, kind, preserve_aspect_ratio=keep_ratio), kind="keypoints")
    target = dataset[0][1]
    across, down = target.box_scale
    expected = np.reshape(POINTS, (3, 3)) / (across, down, 1)
    assert target.keypoints.shape == (2, 3, 3) and target.keypoints[0].numpy() == pytest.approx(expected, abs=1e-6)
    assert not target.keypoints[1].any() and dataset[1][1].keypoints.shape == (0, 3, 3)
    truth = dataset.coco_ground_truth()
    assert truth["annotations"][0]["keypoints"] == POINTS and truth["annotations"][0]["num_keypoints"] == 3
    assert "keypoints" not in truth["annotations"][1]
    assert truth["categories"][0]["keypoints"] == NAMES and truth["categories"][0]["skeleton"] == SKELETON
    assert dataset.class_map.keypoint_counts == [0, 3, 0]
    assert ClassMap.from_list(dataset.class_map.to_list(), 3) == dataset.class_map
    batch = next(iter(build_loader(dataset, spec_of(files), training=False)))
    assert [len(target.keypoints) for target in batch.targets] == [2, 0]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mirrored", [False, True])
def test_augmented_keypoints_are_where_the_image_shows_them(files, seed, mirrored):
    """White pixels mark the keypoints; in a mirrored image, left and right have exchanged names."""
    spec = spec_of(
        files, iou_crop_prob=1.0, zoom_out_prob=0.5, flip_prob=float(mirrored), train_spatial_size=[240, 360]
    )
    image, target = build_train_dataset(spec, seed=seed, kind="keypoints")[0, 0]
    faces = target.keypoints[target.labels == 1]
    for points in faces:
        seen = points[points[:, 2] > 0]
        x, y = (seen[:, 0] * 360).round().long(), (seen[:, 1] * 240).round().long()
        assert all(image[0, max(j - 8, 0) : j + 9, max(i - 8, 0) : i + 9].max() > 20 for i, j in zip(x, y, strict=True))
        if bool((points[1:, 2] > 0).all()):  # the left eye stays on the right
            assert points[1, 0] > points[2, 0]


def test_keypoints_outside_the_crop_are_not_labeled_any_more():
    points = np.array([[[20.0, 30, 2], [30, 20, 1], [10, 20, 2]]])
    swaps = np.array([[0, 2, 1]])
    placement = Placement(Window(15, 10, 20, 40), (80, 40), (80, 80))
    expected = [[5 / 20 / 2, 20 / 40, 2], [15 / 20 / 2, 10 / 40, 1], [0, 0, 0]]
    assert placement.keypoints(points, swaps)[0].numpy() == pytest.approx(np.array(expected))
    mirrored = Placement(Window(15, 10, 20, 40), (80, 40), (80, 80), mirrored=True).keypoints(points, swaps)[0].numpy()
    assert mirrored == pytest.approx(np.array([[14 / 40, 0.5, 2], [0, 0, 0], [4 / 40, 0.25, 1]]))


def test_names_that_show_no_sides_disable_flips_unless_pairs_are_given(tmp_path, caplog):
    categories = [{"id": 1, "name": "face", "keypoints": ["a", "b", "c"]}]
    files = write(tmp_path, [{"keypoints": POINTS}], categories)
    with caplog.at_level(logging.WARNING):
        dataset = build_train_dataset(spec_of(files, flip_prob=1.0), kind="keypoints")
    assert dataset.transform.flip_prob == 0 and "keypoint_flip_pairs" in caplog.text
    dataset = build_train_dataset(spec_of(files, flip_prob=1.0, keypoint_flip_pairs=[1, 2]), kind="keypoints")
    assert dataset.transform.flip_prob == 1 and dataset.class_map.poses[1].swaps == (0, 2, 1)
    dataset = build_train_dataset(spec_of(files, flip_prob=1.0, keypoint_flip_pairs=[]), kind="keypoints")
    assert dataset.transform.flip_prob == 1 and dataset.class_map.poses[1].swaps == (0, 1, 2)
    with pytest.raises(DataError, match=r"keypoint_flip_pairs: \[1, 3\] is invalid; expected pairs .* 0 to 2"):
        build_train_dataset(spec_of(files, keypoint_flip_pairs=[1, 3]), kind="keypoints")


@pytest.mark.parametrize(
    ("annotation", "repair"),
    [
        ({"keypoints": POINTS[:6]}, "keypoints_malformed"),
        ({"keypoints": [*POINTS[:8], 7]}, "keypoints_malformed"),
        ({"keypoints": "x"}, "keypoints_malformed"),
        ({"keypoints": [*POINTS[:6], 500, 20, 2]}, "keypoint_outside"),
        ({}, "keypoints_missing"),
    ],
)
def test_invalid_keypoints_are_counted_and_not_labeled(tmp_path, annotation, repair):
    files = write(tmp_path, [annotation, {"keypoints": POINTS}])
    source = read_source(*files, kind="keypoints")
    assert source.repairs.counts == {repair: 1}
    target = build_eval_dataset(spec_of(files), kind="keypoints")[0][1]
    assert int((target.keypoints[0, :, 2] > 0).sum()) == (2 if repair == "keypoint_outside" else 0)


def test_categories_without_names_get_as_many_keypoints_as_their_objects(tmp_path):
    files = write(tmp_path, [{"keypoints": POINTS}, {"keypoints": POINTS[:6]}], [{"id": 1, "name": "face"}])
    pose = read_source(*files, kind="keypoints").poses[1]
    assert pose.names == ("keypoint_1", "keypoint_2", "keypoint_3") and pose.swaps is None and not pose.skeleton


def test_a_malformed_skeleton_is_counted(tmp_path):
    categories = [{"id": 1, "name": "face", "keypoints": NAMES, "skeleton": [[1, 4]]}]
    source = read_source(*write(tmp_path, [{"keypoints": POINTS}], categories), kind="keypoints")
    assert source.repairs.counts == {"skeleton_malformed": 1} and source.poses[1].skeleton == ()


def test_data_without_keypoints_is_one_clear_message(tmp_path):
    files = write(tmp_path, [{"category_id": 2}])
    with pytest.raises(
        DataError, match=r"1 objects, but none has keypoints, which a keypoint head requires.*keypoint_"
    ):
        build_train_dataset(spec_of(files), kind="keypoints")


def test_another_number_of_keypoints_than_in_the_training_data_is_one_clear_message(tmp_path, files):
    known = build_train_dataset(spec_of(files), kind="keypoints").class_map
    categories = [{"id": 1, "name": "face", "keypoints": NAMES[:2]}, {"id": 2, "name": "ball"}]
    other = write(tmp_path / "other", [{"keypoints": POINTS[:6]}], categories)
    with pytest.raises(DataError, match=r"'face' has 2 keypoints in .* but 3 in the training data or checkpoint"):
        build_eval_dataset(spec_of(other), class_map=known, kind="keypoints")


def test_coco_folders_have_keypoints_in_a_file_of_their_own(tmp_path, files):
    from rtdetr_tool.data.dataset_folder import read_dataset_folder

    folder = tmp_path / "set"
    (folder / "annotations").mkdir(parents=True)
    (tmp_path / "images").rename(folder / "val2017")
    (tmp_path / "a.json").rename(folder / "annotations" / "person_keypoints_val2017.json")
    assert read_dataset_folder(str(folder), "val", kind="keypoints").has("keypoints")
    boxes = read_dataset_folder(str(folder), "val")
    assert len(boxes.images) == 2 and not boxes.has("keypoints")
    (folder / "annotations" / "instances_train2017.json").write_text("{}")
    with pytest.raises(MissingSplit, match=r"expected instances_val\.json"):  # not two files with different classes
        read_dataset_folder(str(folder), "val")


def test_serialized_records_of_images_without_objects(tmp_path):
    files = write(tmp_path, [{"keypoints": POINTS}])
    dataset = build_train_dataset(spec_of(files, "serialized"), kind="keypoints")
    assert dataset[0, 1][1].keypoints.shape == (0, 3, 3) and isinstance(dataset[0, 0][1].keypoints, torch.Tensor)
