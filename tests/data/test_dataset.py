from __future__ import annotations

import logging
import os

import numpy as np
import pytest
import torch

from rtdetr_tool.data.build import build_eval_dataset, build_loader, build_train_dataset
from rtdetr_tool.errors import DataError

from .conftest import coco


def same(a, b) -> bool:
    plain = (a[1].image_id, a[1].path, a[1].original_size) == (b[1].image_id, b[1].path, b[1].original_size)
    return plain and all(
        torch.equal(x, y) for x, y in ((a[0], b[0]), (a[1].boxes, b[1].boxes), (a[1].labels, b[1].labels))
    )


def flatten(loader) -> list:
    return [(image, target) for batch in loader for image, target in zip(batch.images, batch.targets, strict=True)]


def spoil(source, *numbers) -> None:
    for number in numbers:
        with open(os.path.join(source["image_dir"], f"{number}.png"), "wb") as file:
            file.write(b"not an image")


def test_a_sample_is_a_function_of_seed_epoch_and_index(make_source, make_spec) -> None:
    spec = make_spec(train_data_sources=[make_source()])
    one, two = build_train_dataset(spec, seed=5), build_train_dataset(spec, seed=5)
    two.set_epoch(3)
    torch.manual_seed(99)
    np.random.seed(99)
    assert same(one[(3, 1)], two[1])
    assert not same(one[(3, 1)], one[(4, 1)])
    assert not torch.equal(one[(0, 1)][0], build_train_dataset(spec, seed=6)[(0, 1)][0])


def test_drawing_a_sample_leaves_the_global_generators_alone(make_source, make_spec) -> None:
    dataset = build_train_dataset(make_spec(train_data_sources=[make_source()]), seed=5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    dataset[0]
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("kind", ["serialized", "default"])
def test_workers_do_not_change_what_is_loaded(make_source, make_spec, kind) -> None:
    source = make_source(coco(6), images=6)
    loaded = []
    for workers in (0, 2):
        spec = make_spec(train_data_sources=[source], workers=workers, dataset_type=kind)
        loader = build_loader(build_train_dataset(spec, seed=5), spec, training=True)
        epochs = []
        for epoch in range(3):  # persistent workers receive the later epochs while running
            loader.sampler.set_epoch(epoch)
            epochs.append(flatten(loader))
        loaded.append(epochs)
    for epoch in range(3):
        assert len(loaded[0][epoch]) == 6
        assert all(same(a, b) for a, b in zip(loaded[0][epoch], loaded[1][epoch], strict=True))
    assert not all(same(a, b) for a, b in zip(loaded[0][0], loaded[0][1], strict=True))


def test_set_epoch_of_the_dataset_reaches_running_workers(make_source, make_spec) -> None:
    spec = make_spec(train_data_sources=[make_source()])
    dataset = build_train_dataset(spec, seed=5)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    first = list(loader)
    dataset.set_epoch(7)
    second = list(loader)
    assert same(first[0], dataset[(0, 0)]) and same(second[0], dataset[(7, 0)])


def test_crowds_are_no_training_targets_but_stay_in_the_ground_truth(make_source, make_spec) -> None:
    source = make_source()
    spec = make_spec(train_data_sources=[source], val_data_sources=source)
    dataset = build_eval_dataset(spec, "val")
    assert [len(dataset[i][1].boxes) for i in range(4)] == [2, 2, 1, 2]
    truth = dataset.coco_ground_truth()
    assert len(truth["annotations"]) == 8 and sum(a["iscrowd"] for a in truth["annotations"]) == 1
    train = build_train_dataset(make_spec({"iou_crop_prob": 0.0}, train_data_sources=[source]), seed=0)
    assert [len(train[(0, i)][1].boxes) for i in range(4)] == [2, 2, 1, 2]


def test_an_evaluation_target_leads_back_to_the_pixels_of_the_original(make_source, make_spec) -> None:
    source = make_source()
    for preserve in (False, True):
        spec = make_spec({"preserve_aspect_ratio": preserve}, val_data_sources=source)
        image, target = build_eval_dataset(spec, "val")[0]
        assert image.shape == ((3, 96, 96) if preserve else (3, 64, 96))
        assert target.original_size == (48, 64) and target.image_id == 1
        center, size = target.boxes[:, :2], target.boxes[:, 2:]
        back = torch.cat([center - size / 2, center + size / 2], 1) * torch.tensor(target.box_scale * 2)
        assert torch.allclose(back, torch.tensor([[4.0, 6, 24, 22], [14, 6, 34, 22]]), atol=1e-4)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_training_image_is_named_once_and_replaced(make_source, make_spec, caplog, capfd, workers) -> None:
    source = make_source()
    spoil(source, 2)
    spec = make_spec(train_data_sources=[source], workers=workers)
    dataset = build_train_dataset(spec, seed=5)
    loader = build_loader(dataset, spec, training=True)
    with caplog.at_level(logging.WARNING):
        samples = flatten(loader) + flatten(loader)
    assert len(samples) == 8 and not any(target.path.endswith("2.png") for _, target in samples)
    again = build_train_dataset(spec, seed=5)
    assert same(dataset[(0, 2)], again[(0, 2)])
    if workers == 0:
        text = [record.getMessage() for record in caplog.records if "2.png" in record.getMessage()]
        assert len(text) == 2 and "Using another image" in text[0]  # once per dataset


def test_a_bad_training_image_stops_the_run_if_the_spec_reports_it(make_source, make_spec) -> None:
    source = make_source()
    spoil(source, 2)
    spec = make_spec(train_data_sources=[source], on_bad_image="error")
    with pytest.raises(DataError, match=r"2\.png.*not an image"):
        flatten(build_loader(build_train_dataset(spec), spec, training=True))


def test_a_training_set_of_unreadable_images_ends(make_source, make_spec) -> None:
    source = make_source()
    spoil(source, 0, 1, 2, 3)
    with pytest.raises(DataError, match="20 images in a row"):
        build_train_dataset(make_spec(train_data_sources=[source]))[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_evaluation_image_is_one_readable_line_also_from_a_worker(make_source, make_spec, workers) -> None:
    source = make_source()
    spoil(source, 3)
    spec = make_spec(val_data_sources=source, workers=workers)
    with pytest.raises(DataError, match=r"3\.png") as caught:
        flatten(build_loader(build_eval_dataset(spec, "val"), spec, training=False))
    assert "Traceback" not in str(caught.value) and "worker" not in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_boxes_for_another_image_size_are_an_error(make_source, make_spec) -> None:
    spec = make_spec(val_data_sources=make_source(coco(4, width=60)))
    with pytest.raises(DataError, match="64x48 pixels, but 60x48 in its annotations"):
        build_eval_dataset(spec, "val")[0]


def test_a_negative_seed_draws_another_one_each_time(make_source, make_spec) -> None:
    spec = make_spec(train_data_sources=[make_source()])
    assert build_train_dataset(spec, seed=-1).seed != build_train_dataset(spec, seed=-1).seed
