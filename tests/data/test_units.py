"""Boxes in another unit or format: an error if the whole file shows it, a warning in doubt, otherwise nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from rtdetr_tool.data.build import build_train_dataset
from rtdetr_tool.data.coco import read_source
from rtdetr_tool.data.units import CXCYWH, FORMS, XYWH, XYXY, BoxUnits
from rtdetr_tool.errors import DataError

from .conftest import coco, draw_image

SIDES = (640.0, 480.0)


def drawn(count: int = 40, form: str = XYWH, scale: tuple[float, float] = (1, 1)) -> list[tuple[float, ...]]:
    """Boxes all over an image of 640 x 480, as written in `form` and multiplied by `scale`."""
    draw, boxes = random.Random(count), []
    for _ in range(count):
        width, height = draw.uniform(8, 200), draw.uniform(8, 200)
        x, y = draw.uniform(0, SIDES[0] - width), draw.uniform(0, SIDES[1] - height)
        written = {
            XYWH: (x, y, width, height), XYXY: (x, y, x + width, y + height),
            CXCYWH: (x + width / 2, y + height / 2, width, height),
        }[form]  # fmt: skip
        boxes.append(tuple(value * scale[index % 2] for index, value in enumerate(written)))
    return boxes


def judged(declared: str, boxes: list[tuple[float, ...]], shares: bool = False) -> str | None:
    units = BoxUnits(declared, shares)
    for box in boxes:
        units.add(box, *((1, 1) if shares else SIDES))
    return units.warning("labels.json")


UNIT = (1 / SIDES[0], 1 / SIDES[1])


@pytest.mark.parametrize("declared", FORMS)
@pytest.mark.parametrize("count", [1, 5, 40, 400])
def test_valid_boxes_are_accepted_without_a_message(declared, count) -> None:
    assert judged(declared, drawn(count, declared)) is None
    assert judged(declared, drawn(count, declared, UNIT), shares=True) is None


@pytest.mark.parametrize("declared", [XYWH, XYXY])
@pytest.mark.parametrize("written", FORMS)
@pytest.mark.parametrize("count", [1, 40])
def test_shares_where_pixels_are_expected_are_refused(declared, written, count) -> None:
    with pytest.raises(DataError, match=r"labels\.json are normalized.*Multiply x and width by the width"):
        judged(declared, drawn(count, written, UNIT))


def test_pixels_where_shares_are_expected_are_refused() -> None:
    with pytest.raises(DataError, match="are not normalized: 40 of 40 boxes have a value above 1"):
        judged(CXCYWH, drawn(40, CXCYWH), shares=True)


@pytest.mark.parametrize(("declared", "written"), [(XYWH, XYXY), (XYXY, XYWH), (CXCYWH, XYXY)])
def test_another_format_is_refused_if_certain_and_a_warning_if_in_doubt(declared, written) -> None:
    shares = declared == CXCYWH
    scale = UNIT if shares else (1, 1)
    with pytest.raises(DataError) as caught:
        judged(declared, drawn(40, written, scale), shares)
    assert f"are {written}; expected {declared}" in str(caught.value)
    few = drawn(9, written, scale)
    assert f"may be {written} instead of {declared}" in judged(declared, few, shares)
    mixed = drawn(40, declared, scale) + drawn(10, written, scale)
    judged(declared, mixed, shares)  # not certain, so no error


def test_imprecise_boxes_do_not_count_as_another_format() -> None:
    sloppy = [(x - 15, y - 15, width + 30, height + 30) for x, y, width, height in drawn(200)]
    assert judged(XYWH, sloppy) is None
    whole_image = [(0, 0, *SIDES), (5, 5, 630, 470), (2, 0, 640, 478)] * 20
    assert judged(XYWH, whole_image) is None


def test_some_boxes_within_the_first_pixel_are_a_warning() -> None:
    assert "2 of 42 boxes of labels.json are within the first pixel" in judged(XYWH, drawn(40) + drawn(2, XYWH, UNIT))
    assert "within the first pixel" in judged(XYWH, [(0, 0, 1, 1)] * 20)  # integers are not conclusive


def test_percent_and_pixels_of_smaller_copies_are_a_warning() -> None:
    percent = drawn(200, XYWH, (100 / SIDES[0], 100 / SIDES[1]))
    assert "All boxes of labels.json are within 16% of the width and 21% of the height" in judged(XYWH, percent)


def test_a_coco_file_of_the_wrong_unit_is_refused_and_a_doubtful_one_counted(make_source) -> None:
    normalized = coco(6)
    for annotation in normalized["annotations"]:
        annotation["bbox"] = [0.1, 0.2, 0.25, 0.5]
    with pytest.raises(DataError, match=r"normalized\.json are normalized"):
        read_source(*make_source(normalized, images=6, name="normalized").values())
    edges = coco(8)
    for number, annotation in enumerate(edges["annotations"]):
        annotation["bbox"] = [10 + number, 8, 50, 40 + number // 4]
    with pytest.raises(DataError, match=r"edges\.json are \[x1, y1, x2, y2\]"):
        read_source(*make_source(edges, images=8, name="edges").values())
    few = {**edges, "annotations": edges["annotations"][-4:]}
    source = read_source(*make_source(few, images=8, name="few").values())
    assert source.repairs.counts["unit_doubtful"] == 1
    assert "may be [x1, y1, x2, y2]" in source.repairs.examples["unit_doubtful"][0]


def test_augmentation_that_drops_nearly_all_boxes_is_a_warning(make_source, make_spec, caplog) -> None:
    tiny = coco(8, width=1000, height=1000)
    for number, annotation in enumerate(tiny["annotations"]):
        annotation["bbox"] = [100 * number % 900, 500, 3, 3]
    source = make_source(tiny, images=8, draw=False)
    for number in range(8):
        draw_image(Path(source["image_dir"]) / f"{number}.png", 1000, 1000)
    dataset = build_train_dataset(make_spec(train_data_sources=[source]))
    for number in (*range(8), *range(8)):
        dataset[number]
    lines = [record.getMessage() for record in caplog.records if "Augmentation keeps only" in record.getMessage()]
    assert len(lines) == 1 and "of the first 16 boxes" in lines[0]
    caplog.clear()
    sound = build_train_dataset(make_spec(train_data_sources=[make_source(name="sound")]))
    for epoch in range(3):
        for number in range(4):
            sound[(epoch, number)]
    assert "Augmentation keeps only" not in caplog.text
