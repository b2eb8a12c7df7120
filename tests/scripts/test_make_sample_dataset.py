"""The sample dataset: exact boxes, reproducible files, and files that our readers accept."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as judge
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_sample_dataset.py"


def _load():
    spec = importlib.util.spec_from_file_location("make_sample_dataset", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


sample = _load()


def _digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sample")
    assert sample.main([str(root), "--train", "12", "--val", "4", "--test", "2", "--size", "96"]) == 0
    return root


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, dataset):
    counts = ["--train", "12", "--val", "4", "--test", "2", "--size", "96"]
    for name, seed in (("again", "7"), ("other", "8")):
        sample.main([str(tmp_path / name), *counts, "--seed", seed])
    first, again, other = _digests(dataset), _digests(tmp_path / "again"), _digests(tmp_path / "other")
    assert first == again
    assert first.keys() == other.keys()
    names = [name for name in first if name.endswith(".jpg")]
    assert all(first[name] != other[name] for name in names)
    assert len({first[name] for name in names}) == len(names) == 18


def test_a_larger_set_begins_with_the_images_of_a_smaller_one(tmp_path, dataset):
    sample.main([str(tmp_path), "--train", "5", "--val", "1", "--test", "0", "--size", "96"])
    large, small = _digests(dataset), _digests(tmp_path)
    assert sum(name.endswith(".jpg") for name in small) == 6
    assert all(large[name] == digest for name, digest in small.items() if name.endswith(".jpg"))


def test_a_box_bounds_the_visible_pixels_of_its_object():
    for seed in range(20):
        scene = sample.draw_scene(np.random.default_rng(seed), 128)
        assert 1 <= len(scene.objects) <= sample.MAX_OBJECTS
        for result in scene.objects:
            x, y, width, height = result.box
            assert result.mask.shape == scene.image.size[::-1]
            inside = result.mask[y : y + height, x : x + width]
            assert inside.sum() == result.mask.sum() > 0
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_no_object_is_hidden_more_than_allowed_and_visible_parts_do_not_overlap():
    overlapped = 0
    for seed in range(30):
        objects = sample.draw_scene(np.random.default_rng(seed), 128).objects
        assert np.sum([result.mask for result in objects], axis=0).max() == 1
        for result in objects:
            assert result.mask.sum() >= sample.MIN_VISIBLE * result.full_area
            overlapped += result.mask.sum() < 0.9 * result.full_area
    assert overlapped > 5


def test_the_pixels_of_a_mask_are_where_the_image_shows_the_object(monkeypatch):
    """With every object in pure green on black and without camera effects, the green pixels are the masks."""
    monkeypatch.setattr(sample, "_background", lambda rng, w, h: np.zeros((h, w, 3), np.float32))
    monkeypatch.setattr(sample, "_camera", lambda rng, canvas: Image.fromarray(canvas.round().astype(np.uint8)))
    paint = np.array([0, 255, 0], np.float32)
    monkeypatch.setattr(sample, "_texture", lambda rng, x, y, angle: np.broadcast_to(paint, (*x.shape, 3)))
    for seed in range(10):
        scene = sample.draw_scene(np.random.default_rng(seed), 160)
        green = np.asarray(scene.image)[..., 1]
        masks = np.any([result.mask for result in scene.objects], axis=0)
        assert (green[masks] >= 127).all()
        assert (green >= 140)[~masks].sum() <= 0.02 * masks.sum()  # seams of two touching fringes


def test_annotations_are_coco_with_ids_from_one_and_integer_pixels_inside_the_image(dataset):
    for split, count in (("train", 12), ("val", 4), ("test", 2)):
        content = json.loads((dataset / "annotations" / f"instances_{split}.json").read_text())
        assert len(content["images"]) == count
        assert [(c["id"], c["name"]) for c in content["categories"]] == list(enumerate(sample.CLASSES, start=1))
        images = {image["id"]: image for image in content["images"]}
        assert {a["image_id"] for a in content["annotations"]} == set(images)
        assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"])
        for image in images.values():
            with Image.open(dataset / split / image["file_name"]) as opened:
                assert opened.size == (image["width"], image["height"])
                assert max(opened.size) == 96 and opened.mode == "RGB"
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            image = images[annotation["image_id"]]
            assert x >= 0 and y >= 0 and width > 0 and height > 0
            assert x + width <= image["width"] and y + height <= image["height"]
            assert 0 < annotation["area"] <= width * height
            assert annotation["segmentation"]["size"] == [image["height"], image["width"]]
            mask = judge.frPyObjects(annotation["segmentation"], image["height"], image["width"])
            assert judge.area(mask) == annotation["area"]
            assert judge.toBbox(mask).tolist() == annotation["bbox"]
    assert (dataset / "classmap.txt").read_text().splitlines() == list(sample.CLASSES)


def test_every_class_and_every_aspect_occurs():
    scenes = [sample.draw_scene(np.random.default_rng([7, 0, index]), 64) for index in range(60)]
    assert {result.label for scene in scenes for result in scene.objects} == set(range(len(sample.CLASSES)))
    assert {scene.image.size for scene in scenes} == {(64, 64), (64, 48), (48, 64)}


def test_our_own_reader_takes_the_files_and_numbers_the_classes_in_id_order(dataset):
    from rtdetr_tool.data.build import build_eval_dataset
    from rtdetr_tool.spec import AugmentationSpec, DatasetSpec

    spec = DatasetSpec(
        val_data_sources={
            "image_dir": str(dataset / "val"),
            "json_file": str(dataset / "annotations" / "instances_val.json"),
        },
        num_classes=len(sample.CLASSES),
        augmentation=AugmentationSpec(eval_spatial_size=[64, 64]),
    )
    val = build_eval_dataset(spec, split="val")
    assert len(val) == 4
    assert val.class_map.names == list(sample.CLASSES)
    image, target = val[0]
    assert image.shape == (3, 64, 64) and len(target.boxes) == len(target.labels) > 0


@pytest.mark.parametrize("options", [["--size", "16"], ["--train", "-1"], ["--seed", "-3"]])
def test_impossible_options_are_refused(tmp_path, options, capsys):
    with pytest.raises(SystemExit) as stop:
        sample.main([str(tmp_path), *options])
    assert stop.value.code == 2
    assert "must" in capsys.readouterr().err
