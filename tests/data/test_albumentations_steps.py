"""Transforms of the Albumentations library: objects move along, and samples stay functions of the generator."""

from __future__ import annotations

import pickle
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from rtdetr_tool.data.build import build_loader, build_train_dataset
from rtdetr_tool.errors import DataError, SpecError
from rtdetr_tool.spec import spec_from_dict

from .test_augmented_dataset import PLAIN, masked
from .test_dataset import flatten, same

installed = pytest.mark.skipif(find_spec("albumentations") is None, reason="requires albumentations")
FLIP = {"__class_fullname__": "HorizontalFlip", "p": 1.0}
NOISE = {"__class_fullname__": "GaussNoise", "p": 1.0}
FIELD = r"dataset\.augmentation\.albumentations"


@pytest.fixture
def build(make_source, make_spec):
    source = make_source(masked())

    def make(entries, kind="boxes", **changes):
        spec = make_spec({**PLAIN, "albumentations": entries}, train_data_sources=[source], **changes)
        return build_train_dataset(spec, seed=5, kind=kind), spec

    return make


@pytest.mark.skipif(find_spec("albumentations") is not None, reason="albumentations is installed")
def test_without_the_package_the_message_has_the_command_to_install_it(build):
    with pytest.raises(DataError, match=rf'{FIELD} requires albumentations: pip install "rtdetr-tool\[albument'):
        build([FLIP])


def test_an_entry_without_a_class_is_reported():
    with pytest.raises(SpecError, match=rf"{FIELD}\[1\]: required key __class_fullname__"):
        spec_from_dict({"results_dir": "x", "dataset": {"augmentation": {"albumentations": [FLIP, {"p": 1.0}]}}})


@installed
def test_a_flip_moves_image_boxes_and_masks(build):
    plain, flipped = build(None, "masks")[0], build([FLIP], "masks")[0]
    for index in range(4):
        (image, target), (expected, before) = flipped[0, index], plain[0, index]
        assert (image.int() - expected.flip(-1).int()).abs().max() <= 1
        assert torch.allclose(target.boxes[:, 0], 1 - before.boxes[:, 0], atol=1e-5)
        assert torch.allclose(target.boxes[:, 1:], before.boxes[:, 1:], atol=1e-5)
        assert torch.equal(target.labels, before.labels) and torch.equal(target.masks, before.masks.flip(-1))


@installed
def test_transforms_of_pixels_keep_boxes_exactly(build):
    plain, noisy = build(None)[0], build([NOISE])[0]
    assert not noisy.transform.first.changes_geometry
    (image, target), (expected, before) = noisy[0, 0], plain[0, 0]
    assert not torch.equal(image, expected) and torch.equal(target.boxes, before.boxes)


@installed
def test_objects_that_leave_the_image_are_removed_with_their_masks(build):
    crop = {"__class_fullname__": "Crop", "x_min": 0, "y_min": 0, "x_max": 8, "y_max": 8, "p": 1.0}
    dataset, _ = build([crop], "masks")
    for index in range(4):
        image, target = dataset[0, index]
        assert target.masks.shape == (len(target.boxes), *image.shape[-2:]) and len(target.labels) == len(target.boxes)
        assert target.masks.flatten(1).any(1).all()


@installed
def test_samples_do_not_depend_on_workers_and_pickling(build):
    one_of = {"__class_fullname__": "OneOf", "p": 0.9, "transforms": [FLIP, {**NOISE, "p": 0.7}]}
    loaded = []
    for workers in (0, 2):
        dataset, spec = build([one_of, NOISE], workers=workers)
        loaded.append(flatten(build_loader(dataset, spec, training=True)))
    assert all(same(a, b) for a, b in zip(*loaded, strict=True))
    dataset = build([one_of])[0]
    before = [dataset[1, index] for index in range(4)]
    dataset.transform.first = pickle.loads(pickle.dumps(dataset.transform.first))
    assert all(same(dataset[1, index], sample) for index, sample in enumerate(before))


@installed
@pytest.mark.parametrize(("entry", "message"), [
    ({"__class_fullname__": "Nonsense", "p": 0.5}, rf"{FIELD}\[0\]: .* has no transform 'Nonsense'"),
    ({**NOISE, "strength": 3}, rf"{FIELD}\[0\]: GaussNoise is invalid: .*strength"),
    ({**NOISE, "p": 7}, rf"{FIELD}\[0\]: GaussNoise is invalid"),
])  # fmt: skip
def test_invalid_entries_are_errors(build, entry, message):
    with pytest.raises(DataError, match=message):
        build([entry])


@installed
def test_a_result_that_is_no_image_of_8_bits_is_an_error(build):
    dataset, _ = build([{"__class_fullname__": "ToFloat", "p": 1.0}])
    with pytest.raises(DataError, match=r"3 channels of float32; expected 3 of uint8"):
        dataset[0, 0]
    dataset, _ = build([{"__class_fullname__": "Crop", "x_max": 5000, "y_max": 5000, "p": 1.0}])
    with pytest.raises(DataError, match=rf"{FIELD}: failed on an image of 64x48 pixels"):
        dataset[0, 0]


@installed
def test_only_transforms_of_pixels_are_used_with_keypoints():
    from rtdetr_tool.data.build_augmentation import train_transform
    from rtdetr_tool.ops.classes import ClassMap
    from rtdetr_tool.ops.keypoints import Pose
    from rtdetr_tool.spec import AugmentationSpec

    class_map = ClassMap.from_categories({0: "cat"}).with_poses({0: Pose(("a", "b"), (), None)})
    assert train_transform(AugmentationSpec(albumentations=[NOISE]), class_map).first is not None
    with pytest.raises(DataError, match="only transforms of pixels"):
        train_transform(AugmentationSpec(albumentations=[NOISE, FLIP]), class_map)


@installed
def test_no_numbers_are_drawn_from_the_global_generators(build):
    before = np.random.get_state()[1].copy()
    build([NOISE])[0][0, 0]
    assert (before == np.random.get_state()[1]).all()
