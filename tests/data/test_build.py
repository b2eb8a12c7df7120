from __future__ import annotations

import logging

import pytest
import torch

from rtdetr_tool.data.build import build_eval_dataset, build_loader, build_train_dataset
from rtdetr_tool.data.serialized import SerializedRecords
from rtdetr_tool.errors import DataError
from rtdetr_tool.ops.classes import ClassMap

from .conftest import coco, draw_image


def test_several_train_sources_are_joined_with_the_union_of_their_classes(make_source, make_spec) -> None:
    one, two = make_source(name="one"), make_source(coco(3, ids=(2, 7)), images=3, name="two")
    dataset = build_train_dataset(make_spec(train_data_sources=[one, two], num_classes=3))
    assert len(dataset) == 7
    assert dataset.class_map.names == ["name1", "name2", "name7"]
    assert dataset.records[4].labels.tolist() == [1, 2]
    assert {record.path.split("/")[-2] for record in dataset.records} == {"one", "two"}


@pytest.mark.parametrize("rank", [0, 1])
def test_batches_have_the_shares_of_the_sources(make_source, make_spec, caplog, rank) -> None:
    caplog.set_level(logging.INFO)
    one, two = make_source(images=9, name="one"), make_source(images=4, name="two")
    spec = make_spec(train_data_sources=[one, two], train_source_shares=[1, 3], batch_size=4, on_bad_image="error")
    loader = build_loader(build_train_dataset(spec), spec, training=True, rank=rank, world_size=2)
    (batch,) = loader
    folders = [target.path.split("/")[-2] for target in batch.targets]
    assert sorted(folders) == ["one", "two", "two", "two"]
    assert "one.json 25.0% (9 images)" in caplog.text and "two.json 75.0% (4 images)" in caplog.text


def test_a_single_mapping_is_a_list_of_one(make_source, make_spec) -> None:
    assert len(build_train_dataset(make_spec(train_data_sources=make_source()))) == 4


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (None, r"dataset\.train_data_sources: required, but not set"),
        ([], r"dataset\.train_data_sources: required, but not set"),
        ([{"image_dir": "x"}], "json_file required, but not set"),
        ([{"image_dir": "", "json_file": ""}], "image_dir and json_file required, but not set"),
    ],
)
def test_missing_sources_name_the_field(make_spec, sources, message) -> None:
    with pytest.raises(DataError, match=message):
        build_train_dataset(make_spec(train_data_sources=sources))


def test_an_empty_list_of_images_is_refused(make_source, make_spec) -> None:
    empty = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    with pytest.raises(DataError, match="has no images"):
        build_eval_dataset(make_spec(val_data_sources=make_source(empty)), "val")


def test_dataset_type_decides_how_records_are_held(make_source, make_spec) -> None:
    source = make_source()
    packed = build_train_dataset(make_spec(train_data_sources=[source]))
    plain = build_train_dataset(make_spec(train_data_sources=[source], dataset_type="default"))
    assert isinstance(packed.records, SerializedRecords) and isinstance(plain.records, list)
    assert packed.coco_ground_truth() == plain.coco_ground_truth()


def test_an_evaluation_file_must_agree_with_the_classes_of_the_checkpoint(make_source, make_spec) -> None:
    source = make_source()
    trained = ClassMap.from_list([{"index": 0, "id": 2, "name": "name2"}, {"index": 1, "id": 1, "name": "name1"}])
    dataset = build_eval_dataset(make_spec(val_data_sources=source), "val", trained)
    assert dataset.class_map.to_list() == trained.to_list() and dataset.records[0].labels.tolist() == [1, 0]
    renamed = ClassMap.from_list([{"index": 0, "id": 1, "name": "cat"}, {"index": 1, "id": 2, "name": "name2"}])
    with pytest.raises(DataError, match=r"Category 1 is 'name1' .*'cat'"):
        build_eval_dataset(make_spec(val_data_sources=source), "val", renamed)


def test_missing_images_stop_evaluation_and_are_reported_in_training(make_source, make_spec, tmp_path, caplog) -> None:
    source = make_source()
    (tmp_path / "set" / "1.png").unlink()
    with pytest.raises(DataError, match="1 of 4 image files"):
        build_eval_dataset(make_spec(val_data_sources=source), "val")
    with caplog.at_level(logging.WARNING):
        dataset = build_train_dataset(make_spec(train_data_sources=[source]))
    assert len(dataset) == 3 and dataset.repairs.counts == {"image_missing": 1}
    assert "1 missing image files: skipped" in caplog.text
    with pytest.raises(DataError, match="1 of 4 image files"):
        build_train_dataset(make_spec(train_data_sources=[source], on_bad_image="error"))


def test_a_training_batch_has_uint8_images_of_the_training_size(make_source, make_spec) -> None:
    spec = make_spec(train_data_sources=[make_source()])
    batches = list(build_loader(build_train_dataset(spec), spec, training=True))
    assert [batch.images.shape for batch in batches] == [(2, 3, 64, 96)] * 2
    assert batches[0].images.dtype == torch.uint8 and len(batches[0].targets) == 2


@pytest.mark.parametrize(("images", "batch", "world", "expected"), [(5, 2, 1, [2, 2]), (1, 4, 1, [1]), (3, 4, 2, [2])])
def test_training_drops_the_rest_only_if_a_full_step_remains(
    make_source, make_spec, images, batch, world, expected
) -> None:
    spec = make_spec(train_data_sources=[make_source(coco(images), images=images)], batch_size=batch)
    dataset = build_train_dataset(spec)
    for rank in range(world):
        loader = build_loader(dataset, spec, training=True, rank=rank, world_size=world)
        assert [len(b) for b in loader] == expected and len(loader) == len(expected)


def test_two_ranks_evaluate_every_image_once(make_source, make_spec) -> None:
    spec = make_spec(val_data_sources=make_source(coco(5), images=5))
    dataset = build_eval_dataset(spec, "val")
    seen = []
    for rank in range(2):
        loader = build_loader(dataset, spec, training=False, rank=rank, world_size=2)
        seen += [target.image_id for batch in loader for target in batch.targets]
    assert sorted(seen) == [1, 2, 3, 4, 5]


def test_the_loader_draws_no_random_numbers_before_the_first_batch(make_source, make_spec) -> None:
    spec = make_spec(train_data_sources=[make_source()], batch_size=4)
    dataset = build_train_dataset(spec, seed=1)
    loader = build_loader(dataset, spec, training=True)
    early = iter(loader)  # as in a resumed run of Lightning
    loader.sampler.set_epoch(3)
    resumed = next(early)
    assert torch.equal(resumed.images, next(iter(loader)).images)
    loader.sampler.set_epoch(0)
    assert not torch.equal(resumed.images, next(iter(loader)).images)


def test_lightning_sets_the_epoch_of_our_sampler(make_source, make_spec) -> None:
    from lightning_fabric.utilities.data import _set_sampler_epoch

    spec = make_spec(train_data_sources=[make_source()])
    loader = build_loader(build_train_dataset(spec), spec, training=True)
    _set_sampler_epoch(loader, 6)
    assert loader.sampler.epoch == 6


def test_an_exif_rotated_image_and_its_boxes_agree(make_spec, make_source, tmp_path) -> None:
    import numpy as np
    from PIL import Image

    content = coco(1)
    content["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [32, 0, 32, 24]}]
    source = make_source(content, draw=False)
    draw_image(tmp_path / "set" / "0.png")
    upright = np.zeros((48, 64, 3), dtype=np.uint8)
    upright[:24, 32:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tmp_path / "set" / "0.png", exif=exif)
    image, target = build_eval_dataset(make_spec(val_data_sources=source), "val")[0]
    assert (image[:, :31, 49:] == 255).all() and (image[:, 33:] == 0).all() and (image[:, :, :47] == 0).all()
    assert torch.allclose(target.boxes, torch.tensor([[0.75, 0.25, 0.5, 0.5]]))


def test_the_blood_cells_load(bccd, make_spec) -> None:
    def source(split):
        return {"image_dir": f"{bccd}/{split}", "json_file": f"{bccd}/annotations/instances_{split}.json"}

    spec = make_spec(
        train_data_sources=[source("train")], val_data_sources=source("val"), test_data_sources=source("test"),
        num_classes=3, batch_size=8,
    )  # fmt: skip
    train = build_train_dataset(spec)
    val, test = (build_eval_dataset(spec, split, train.class_map) for split in ("val", "test"))
    assert [len(train), len(val), len(test)] == [205, 87, 72]
    assert train.class_map.names == ["RBC", "WBC", "Platelets"]
    assert [sum(map(len, d.records)) for d in (train, val, test)] == [2804, 1137, 945]
    assert len(build_loader(train, spec, training=True)) == 25
    assert len(build_loader(val, spec, training=False)) == 11
    assert len(next(iter(build_loader(train, spec, training=True)))) == 8
