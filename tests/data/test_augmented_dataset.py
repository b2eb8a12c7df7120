"""Combined samples are functions of seed, epoch and index, and steps are used in their epochs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rtdetr_tool.data.build import build_loader, build_train_dataset
from rtdetr_tool.data.sampling import TrainSampler
from rtdetr_tool.data.stages import Stages
from rtdetr_tool.data.transforms import TrainTransform
from rtdetr_tool.errors import DataError

from .conftest import coco
from .test_dataset import flatten, same, spoil

MIXED = {"mosaic_prob": 0.6, "mixup_prob": 0.5}
PLAIN = dict.fromkeys(("distortion_prob", "iou_crop_prob", "zoom_out_prob", "flip_prob"), 0.0)


def masked(images: int = 4):
    """The COCO content of `coco` with a polygon for each object."""
    content = coco(images)
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return content


def test_the_default_steps_draw_the_same_numbers_as_one_transform(make_source, make_spec) -> None:
    dataset = build_train_dataset(make_spec(train_data_sources=[make_source()]), seed=5)
    for epoch, index in ((0, 0), (0, 2), (3, 1)):
        record = dataset.records[index]
        image, keep = dataset._decode(record, index), ~record.iscrowd
        expected = TrainTransform((64, 96))(
            image, torch.from_numpy(record.boxes[keep]), torch.from_numpy(record.labels[keep]),
            np.random.default_rng([5, epoch, index]),
        )  # fmt: skip
        image, target = dataset[epoch, index]
        assert all(torch.equal(a, b) for a, b in zip((image, target.boxes, target.labels), expected, strict=True))


@pytest.mark.parametrize("cache", ["none", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
def test_combined_samples_do_not_depend_on_workers_and_cache(make_source, make_spec, cache, workers) -> None:
    source = make_source(coco(6), images=6)
    reference = build_train_dataset(make_spec(MIXED, train_data_sources=[source]), seed=5)
    spec = make_spec(MIXED, train_data_sources=[source], workers=workers, cache=cache, dataset_type="default")
    loader = build_loader(build_train_dataset(spec, seed=5), spec, training=True)
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        expected = [reference[index] for index in loader.sampler]
        assert len(expected) == 6 and all(same(a, b) for a, b in zip(flatten(loader), expected, strict=True))


def test_combined_samples_are_the_same_in_one_process_and_in_two(make_source, make_spec) -> None:
    spec = make_spec(MIXED, train_data_sources=[make_source(coco(8), images=8)])
    dataset = build_train_dataset(spec, seed=5)
    alone = list(TrainSampler(8, 5, batch_size=4))
    ranks = [list(TrainSampler(8, 5, 2, rank, 2)) for rank in (0, 1)]
    assert sorted(alone) == sorted(ranks[0] + ranks[1])
    again = build_train_dataset(spec, seed=5)
    assert all(same(dataset[index], again[index]) for index in reversed(alone))


def test_samples_that_are_not_combined_are_those_without_mixing(make_source, make_spec) -> None:
    source = make_source(coco(6), images=6)
    plain = build_train_dataset(make_spec(train_data_sources=[source]), seed=5)
    mixed = build_train_dataset(make_spec({"mosaic_prob": 0.5}, train_data_sources=[source]), seed=5)
    equal = [same(plain[epoch, i], mixed[epoch, i]) for epoch in range(10) for i in range(6)]
    assert 0.25 < np.mean(equal) < 0.75


def test_strong_steps_and_mixing_are_used_in_their_epochs() -> None:
    stages = Stages(start=2, mix_stop=5, stop=8)
    assert [stages.is_strong(epoch) for epoch in range(10)] == [2 <= epoch < 8 for epoch in range(10)]
    assert [stages.mixes(epoch) for epoch in range(10)] == [2 <= epoch < 5 for epoch in range(10)]
    assert Stages(mix_stop=9, stop=3).mixes(3) is False and Stages().mixes(10**6)


def test_the_last_epochs_show_whole_images(make_source, make_spec) -> None:
    strong = {"distortion_prob": 1.0, "zoom_out_prob": 1.0, "rotation_prob": 1.0, "mosaic_prob": 1.0, "flip_prob": 0.0}
    schedule = {"start_epoch": 1, "mix_stop_epoch": 3, "no_aug_epochs": 2}
    source = make_source()
    spec = make_spec({**strong, **schedule}, train_data_sources=[source])
    dataset = build_train_dataset(spec, seed=5, num_epochs=6)
    plain = build_train_dataset(make_spec(PLAIN, train_data_sources=[source]), seed=5)
    single = build_train_dataset(make_spec({**strong, "mosaic_prob": 0.0}, train_data_sources=[source]), seed=5)
    for epoch in range(6):
        is_plain, is_single = epoch < 1 or epoch >= 4, epoch == 3
        assert same(dataset[epoch, 0], plain[epoch, 0]) == is_plain
        assert same(dataset[epoch, 0], single[epoch, 0]) == is_single
    assert not same(build_train_dataset(spec, seed=5)[5, 0], plain[5, 0])  # a run of unknown length has no last epochs


def test_bad_images_of_a_mosaic_are_replaced(make_source, make_spec) -> None:
    source = make_source(coco(6), images=6)
    spoil(source, 2)
    spec = make_spec({"mosaic_prob": 1.0}, train_data_sources=[source])
    dataset, again = build_train_dataset(spec, seed=5), build_train_dataset(spec, seed=5)
    assert all(same(dataset[0, index], again[0, index]) for index in range(6))
    strict = build_train_dataset(make_spec({"mosaic_prob": 1.0}, train_data_sources=[source], on_bad_image="error"))
    with pytest.raises(DataError, match=r"2\.png"):
        [strict[0, index] for index in (0, 1, 3, 4, 5)]


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_copy_paste_reads_masks_and_adds_objects(make_source, make_spec, kind) -> None:
    source = make_source(masked())
    plain = build_train_dataset(make_spec(PLAIN, train_data_sources=[source]), seed=5)
    spec = make_spec({**PLAIN, "flip_prob": 0.5, "copy_paste_prob": 1.0}, train_data_sources=[source])
    dataset = build_train_dataset(spec, seed=5, kind=kind)
    more = 0
    for index in range(4):
        image, target = dataset[0, index]
        more += len(target.boxes) - len(plain[0, index][1].boxes)
        assert (target.masks is not None) == (kind == "masks")
        if target.masks is not None:
            assert target.masks.shape == (len(target.boxes), *image.shape[-2:]) and target.masks.flatten(1).any(1).all()
    assert more > 0


def test_copy_paste_without_masks_is_an_error(make_source, make_spec) -> None:
    spec = make_spec({"copy_paste_prob": 0.5}, train_data_sources=[make_source()])
    with pytest.raises(DataError, match=r"copy_paste_prob.*segmentation"):
        build_train_dataset(spec)


def test_masks_of_a_mosaic_reach_the_target(make_source, make_spec) -> None:
    spec = make_spec({"mosaic_prob": 1.0, "mixup_prob": 0.5, "rotation_prob": 0.5}, train_data_sources=[
        make_source(masked())])  # fmt: skip
    dataset = build_train_dataset(spec, seed=5, kind="masks")
    for index in range(4):
        image, target = dataset[0, index]
        assert target.masks.shape == (len(target.boxes), *image.shape[-2:])
