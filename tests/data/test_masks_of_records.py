"""Masks from files to targets: read only on request, and transformed like their image."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from rtdetr_tool.data.build import build_eval_dataset, build_loader, build_train_dataset
from rtdetr_tool.data.coco import read_source
from rtdetr_tool.data.serialized import SerializedRecords
from rtdetr_tool.data.transforms import TrainTransform
from rtdetr_tool.data.window import Window, render, render_masks
from rtdetr_tool.errors import DataError
from rtdetr_tool.ops.masks import decode, encode, to_coco
from rtdetr_tool.spec import AugmentationSpec, DatasetSpec

WIDTH, HEIGHT = 90, 60
RED, GREEN = (255, 0, 0), (0, 255, 0)
SQUARE = [[10, 10, 40, 10, 40, 40, 10, 40]]


def write(folder, segmentations, boxes=((10, 10, 30, 30), (50, 20, 30, 30))):
    """Two images: one with two squares in red and green, one without objects."""
    (folder / "images").mkdir()
    image = Image.new("RGB", (WIDTH, HEIGHT))
    for (x, y, w, h), paint in zip(boxes, (RED, GREEN), strict=True):
        image.paste(paint, (x, y, x + w, y + h))
    image.save(folder / "images" / "a.png")
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / "b.png")
    annotations = [
        {"id": i, "image_id": 1, "category_id": i, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0}
        for i, box in enumerate(boxes, 1)
    ]
    for annotation, segmentation in zip(annotations, segmentations, strict=True):
        if segmentation is not None:
            annotation["segmentation"] = segmentation
    content = {
        "images": [
            {"id": i, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT} for i, name in ((1, "a"), (2, "b"))
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return str(folder / "images"), str(folder / "a.json")


def run_lengths(x, y, w, h):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + h, x : x + w] = 1
    return to_coco(encode(mask), (HEIGHT, WIDTH))


@pytest.fixture
def files(tmp_path):
    return write(tmp_path, [SQUARE, run_lengths(50, 20, 30, 30)])


def spec_of(files, kind="default", **augmentation):
    source = {"image_dir": files[0], "json_file": files[1]}
    return DatasetSpec(
        train_data_sources=[source], val_data_sources=source, num_classes=2, dataset_type=kind, workers=0, batch_size=2,
        augmentation=AugmentationSpec(
            **{"train_spatial_size": [48, 64], "eval_spatial_size": [48, 64], "multi_scales": [], **augmentation}
        ),
    )  # fmt: skip


def paint_of(image, paint):
    """The pixels of a rendered image with this color."""
    return (image.float() - torch.tensor(paint).float()[:, None, None]).abs().amax(0) < 64


def agree(mask, seen) -> float:
    return (mask & seen).sum().item() / max((mask | seen).sum().item(), 1)


def test_masks_are_read_only_when_asked_for(files):
    plain, full = read_source(*files), read_source(*files, kind="masks")
    assert not plain.has("masks") and full.has("masks") and not full.repairs
    assert plain.images[1].masks == [] and len(full.images[1].masks) == 2
    assert decode(full.images[1].masks[0], HEIGHT, WIDTH)[10:40, 10:40].all()


@pytest.mark.parametrize("kind", ["default", "serialized"])
@pytest.mark.parametrize("keep_ratio", [False, True])
def test_evaluation_targets_show_their_objects_where_the_image_does(files, kind, keep_ratio):
    dataset = build_eval_dataset(spec_of(files, kind, preserve_aspect_ratio=keep_ratio), kind="masks")
    image, target = dataset[0]
    assert target.masks.shape == (2, *image.shape[-2:]) and target.masks.dtype == torch.bool
    for mask, paint in zip(target.masks, (RED, GREEN), strict=True):
        assert agree(mask, paint_of(image, paint)) > 0.9
    assert dataset[1][1].masks.shape == (0, *image.shape[-2:])
    truth = dataset.coco_ground_truth()["annotations"]
    assert truth[1]["segmentation"] == run_lengths(50, 20, 30, 30)
    batch = next(iter(build_loader(dataset, spec_of(files), training=False)))
    assert [len(target.masks) for target in batch.targets] == [2, 0]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("keep_ratio", [False, True])
def test_augmented_masks_boxes_and_image_stay_together(seed, keep_ratio):
    """With any window, flip and size, the mask covers the color and the box bounds it."""
    corners = np.array([[10, 10, 40, 40], [50, 20, 80, 50]], float)
    image, masks = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8), np.zeros((2, HEIGHT, WIDTH), np.uint8)
    for (x1, y1, x2, y2), mask, paint in zip(corners.astype(int), masks, (RED, GREEN), strict=True):
        image[:, y1:y2, x1:x2] = torch.tensor(paint, dtype=torch.uint8)[:, None, None]
        mask[y1:y2, x1:x2] = 1
    transform = TrainTransform((96, 128), 0.0, 1.0, keep_ratio)
    given = image, torch.from_numpy(corners), torch.tensor([0, 1])
    output, boxes, labels, placement, kept = transform.placed(*given, np.random.default_rng(seed))
    actual = placement.masks(masks[kept])
    plain = transform(*given, np.random.default_rng(seed))
    assert all(torch.equal(a, b) for a, b in zip(plain, (output, boxes, labels), strict=True))
    assert len(actual) == len(boxes) == len(labels)
    size = torch.tensor([output.shape[-1], output.shape[-2]] * 2)
    for mask, box, label in zip(actual, boxes, labels.tolist(), strict=True):
        assert agree(mask, paint_of(output, (RED, GREEN)[label])) > 0.8
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        bounds = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
        expected = torch.cat([box[:2] - box[2:] / 2, box[:2] + box[2:] / 2]) * size
        assert (bounds - expected).abs().max() <= 1  # pixel of the output


def test_a_rendered_mask_is_the_rendered_image_of_it():
    """Render a mask as an image; where that is clearly black or white, the rendered mask is equal."""
    mask = (np.add.outer(np.arange(40), np.arange(50)) % 23 < 11).astype(np.uint8)
    for window in (Window(0, 0, 50, 40), Window(7, 5, 20, 30), Window(-10, -20, 80, 90), Window(60, 0, 10, 10)):
        for mirrored in (False, True):
            output = torch.from_numpy(mask * 255)[None].repeat(3, 1, 1)
            shown = render(output, window, (64, 48), (64, 64), mirrored)[0]
            (result,) = render_masks(mask[None], window, (64, 48), (64, 64), mirrored)
            clear = (shown < 5) | (shown > 250)
            assert torch.equal(result[clear], shown[clear] > 128) and clear.float().mean() > 0.5


def test_training_targets_have_masks_with_both_kinds_of_records(files):
    for kind in ("default", "serialized"):
        dataset = build_train_dataset(spec_of(files, kind), kind="masks")
        target = dataset[0, 0][1]
        assert target.masks.shape[0] == len(target.boxes) and target.masks.any()
    assert build_train_dataset(spec_of(files))[0, 0][1].masks is None


def test_serialized_records_keep_masks_of_any_length():
    from rtdetr_tool.data.records import ImageRecord

    def record(*masks):
        count = len(masks)
        zeros = np.zeros(count)
        return ImageRecord(
            "x", 1, 4, 4, np.zeros((count, 4)), zeros.astype(int), zeros.astype(bool), zeros, list(masks) or None
        )

    packed = SerializedRecords([record(), record(b"ab", b"", b"cde"), record(b"f")])
    assert [packed[i].masks for i in range(3)] == [[], [b"ab", b"", b"cde"], [b"f"]]


def test_a_missing_or_malformed_mask_is_counted_and_empty(tmp_path):
    files = write(tmp_path, [SQUARE, [[1, 2, 3]]])
    source = read_source(*files, kind="masks")
    assert source.repairs.counts == {"mask_malformed": 1} and source.images[1].masks[1] == b""
    other = tmp_path / "other"
    other.mkdir()
    files = write(other, [SQUARE, None])
    assert read_source(*files, kind="masks").repairs.counts == {"mask_missing": 1}
    dataset = build_eval_dataset(spec_of(files), kind="masks")
    assert [bool(mask.any()) for mask in dataset[0][1].masks] == [True, False]
    assert ["segmentation" in a for a in dataset.coco_ground_truth()["annotations"]] == [True, False]


@pytest.mark.parametrize("segmentations", [[None, None], [[], []]])
def test_data_without_any_mask_is_one_clear_message(tmp_path, segmentations):
    files = write(tmp_path, segmentations)
    with pytest.raises(DataError, match=r"2 objects, but none has a mask, which a segmentation head requires.*seg_"):
        build_train_dataset(spec_of(files), kind="masks")
    with pytest.raises(DataError, match=r"val_data_sources\) has 2 objects, but none has a mask"):
        build_eval_dataset(spec_of(files), kind="masks")


def test_outlines_of_yolo_labels_are_masks(tmp_path):
    from rtdetr_tool.data.dataset_folder import read_dataset_folder

    for folder in ("images/val", "labels/val"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images/val/a.png")
    (tmp_path / "data.yaml").write_text("names: [red]\nval: images/val\n")
    x, y = (10 / WIDTH, 40 / WIDTH), (10 / HEIGHT, 40 / HEIGHT)
    outline = f"{x[0]} {y[0]} {x[1]} {y[0]} {x[1]} {y[1]} {x[0]} {y[1]}"
    (tmp_path / "labels/val/a.txt").write_text(f"0 {outline}\n0 0.5 0.5 0.2 0.2\n")
    source = read_dataset_folder(str(tmp_path), "val", kind="masks")
    (image,) = source.images.values()
    assert decode(image.masks[0], HEIGHT, WIDTH)[10:40, 10:40].all() and image.masks[1] == b""
    assert source.repairs.counts == {"mask_missing": 1}
    assert read_dataset_folder(str(tmp_path), "val").repairs.counts == {"outline_boxed": 1}
