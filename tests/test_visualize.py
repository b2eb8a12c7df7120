"""Drawn detections: colors, boxes and labels, checked by pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from rtdetr_tool.errors import UserError
from rtdetr_tool.ops.structures import Detections, InstanceMasks
from rtdetr_tool.visualize import draw_detections, font_size, palette_color, parse_color_map, text_color

GRAY = (90, 90, 90)
NAMES = ("cell", "red blood cell")


def detections(*rows) -> Detections:
    """Rows of x1, y1, x2, y2, score, label."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


def draw(*rows, size=(200, 160), **options) -> np.ndarray:
    image = Image.new("RGB", size, GRAY)
    drawn = draw_detections(image, detections(*rows), NAMES.__getitem__, **options)
    assert drawn.size == size and drawn.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(Image.new("RGB", size, GRAY))), "the given image was changed"
    return np.asarray(drawn)


def where(pixels: np.ndarray, color) -> np.ndarray:
    return (pixels == np.array(color)).all(-1)


def test_nothing_found_leaves_the_image_as_it_is():
    assert where(draw(), GRAY).all()


def test_the_outline_lies_on_the_box_with_the_given_width_and_the_inside_stays():
    pixels = draw((50, 60, 150, 120, 0.9, 0), outline_width=4, labels=False)
    changed = ~where(pixels, GRAY)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (60, 120, 50, 150)
    assert not changed[64:117, 54:147].any()
    assert changed[60:64, 50:151].all() and changed[60:121, 147:151].all()
    assert where(pixels, palette_color(0)).sum() == changed.sum()


@pytest.mark.parametrize("labels", [True, False])
def test_without_labels_there_is_a_box_and_no_strip(labels):
    pixels = draw((50, 60, 150, 120, 0.9, 0), labels=labels)
    assert bool((~where(pixels, GRAY))[:60].any()) == labels


def test_the_label_is_above_the_box_and_is_written_in_a_contrasting_color():
    color = (20, 20, 120)
    pixels = draw((50, 60, 150, 120, 0.876, 0), colors={"cell": color})
    strip = pixels[40:60, 50:100]
    assert where(strip, color).sum() > 200
    assert (strip > 190).all(-1).sum() > 10
    brighter = draw((50, 60, 150, 120, 0.876, 0), colors={"cell": (250, 240, 90)})[40:60, 50:100]
    assert (brighter < 60).all(-1).sum() > 10


def test_the_label_says_name_and_score_with_two_decimals():
    text = draw((20, 60, 150, 120, 0.8761, 1))
    same = draw((20, 60, 150, 120, 0.8799, 1))
    other = draw((20, 60, 150, 120, 0.8651, 1))
    assert np.array_equal(text, same) and not np.array_equal(text, other)


@pytest.mark.parametrize(
    "box", [(0, 0, 60, 40), (150, 0, 199, 30), (160, 150, 199, 159), (190, 80, 199, 90), (0, 155, 199, 159)]
)
def test_the_whole_label_stays_inside_the_frame(box):
    """At an edge, as many bright pixels of letters are visible as in the middle of the image."""
    color = {NAMES[1]: (1, 2, 3)}
    letters = [(draw((*place, 0.9, 1), colors=color) > 200).all(-1).sum() for place in ((40, 80, 41, 81), box)]
    assert letters[0] == letters[1] > 50


def test_a_label_wider_than_the_image_starts_at_its_left_edge():
    pixels = draw((30, 10, 39, 30, 0.9, 1), size=(40, 60))
    assert (~where(pixels, GRAY))[:, 0].any()


def test_boxes_beyond_the_frame_are_clipped_to_it():
    pixels = draw((-50, -20, 500, 300, 0.9, 0), labels=False, outline_width=2)
    changed = ~where(pixels, GRAY)
    assert changed[0].all() and changed[-1].all() and changed[:, 0].all() and changed[:, -1].all()
    assert not changed[2:-2, 2:-2].any()


@pytest.mark.parametrize("box", [(10, 10, 10, 10), (10, 10, 11, 10), (300, 300, 400, 400), (20, 20, 10, 10)])
def test_empty_outside_and_reversed_boxes_do_no_harm(box):
    assert not where(draw((*box, 0.5, 0), outline_width=9), GRAY).all()


def test_a_stronger_detection_is_drawn_over_a_weaker_one_whatever_the_order():
    weak, strong = (20, 20, 80, 80, 0.3, 0), (20, 20, 80, 80, 0.9, 1)
    assert np.array_equal(draw(weak, strong, labels=False), draw(strong, weak, labels=False))
    assert where(draw(strong, weak, labels=False), palette_color(1)).any()
    assert not where(draw(strong, weak, labels=False), palette_color(0)).any()


def test_no_box_runs_through_a_label():
    lower, upper = (20, 60, 80, 100, 0.3, 0), (30, 20, 60, 52, 0.9, 1)
    color = dict.fromkeys(NAMES, (1, 2, 3))
    alone, both = draw(lower, colors=color), draw(lower, upper, colors=color)
    letters = (alone > 200).all(-1)[45:60]
    assert letters.sum() > 20 and (both > 200).all(-1)[45:60][letters].all()


def test_a_class_absent_from_the_color_map_gets_its_palette_color():
    colors = {"cell": (255, 0, 0)}
    assert where(draw((20, 20, 80, 80, 0.9, 1), colors=colors, labels=False), palette_color(1)).any()
    assert where(draw((20, 20, 80, 80, 0.9, 0), colors=colors, labels=False), (255, 0, 0)).any()


def test_black_is_a_color_like_others():
    assert where(draw((20, 20, 80, 80, 0.9, 0), colors={"cell": (0, 0, 0)}, labels=False), (0, 0, 0)).any()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_images_of_other_modes_are_drawn_in_color(mode):
    drawn = draw_detections(Image.new(mode, (64, 64)), detections((5, 5, 40, 40, 0.9, 0)), NAMES.__getitem__)
    assert drawn.mode == "RGB"
    assert where(np.asarray(drawn), palette_color(0)).any()


def test_a_very_small_image_can_be_drawn_on():
    draw((0, 0, 1, 1, 0.9, 1), size=(1, 1))


def test_letters_grow_with_the_image_within_limits():
    assert [font_size((w, h)) for w, h in ((64, 64), (640, 480), (1920, 1080), (9000, 9000))] == [10, 12, 27, 64]


def test_palette_colors_are_stable_distinct_and_neighbors_differ_clearly():
    colors = [palette_color(index) for index in range(91)]
    assert colors == [palette_color(index) for index in range(91)]
    assert len(set(colors)) == 91
    first = np.array(colors[:12], dtype=float)
    distances = np.linalg.norm(first[:, None] - first[None], axis=-1)[~np.eye(12, dtype=bool)]
    assert distances.min() > 40
    steps = np.linalg.norm(np.diff(np.array(colors, dtype=float), axis=0), axis=1)
    assert steps.min() > 80


def test_text_has_at_least_the_contrast_of_4_5_on_every_palette_color():
    def luminance(color):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(color) / 255]
        return float(np.dot((0.2126, 0.7152, 0.0722), linear))

    for index in range(91):
        low, high = sorted((luminance(palette_color(index)), luminance(text_color(palette_color(index)))))
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_names_and_hex_values_are_colors():
    parsed = parse_color_map({"a": "red", "b": "#00ff7f", "c": "#0f0", "d": "hsl(240, 100%, 50%)", "e": "#11223344"})
    assert parsed == {"a": (255, 0, 0), "b": (0, 255, 127), "c": (0, 255, 0), "d": (0, 0, 255), "e": (17, 34, 51)}
    assert parse_color_map(None) == {}


def test_every_wrong_color_is_named_with_class_and_value():
    with pytest.raises(UserError) as error:
        parse_color_map({"cell": "redd", "good": "blue", "plate": None, "other": "#12"})
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert "color_map.cell: 'redd'" in lines[0]
    assert "color_map.plate: null is invalid" in lines[1] and "quotes" in lines[1]
    assert "color_map.other: '#12'" in lines[2]


def test_masks_color_their_pixels_under_the_boxes_of_all_detections():
    result = detections((0, 0, 100, 160, 0.9, 0), (50, 0, 200, 160, 0.5, 1))
    logits = torch.full((2, 1, 4), -1.0)
    logits[0, :, :2], logits[1, :, 1:] = 1.0, 1.0  # the left half, and all but the left quarter
    result.masks = InstanceMasks(logits, torch.arange(2), (160, 200), (160, 200))
    image = Image.new("RGB", (200, 160), GRAY)
    pixels = np.asarray(draw_detections(image, result, NAMES.__getitem__, labels=False)).astype(int)
    strong, weak = (np.array(palette_color(index)) for index in range(2))
    gray = np.array(GRAY)
    assert np.abs(pixels[80, 20] - (0.55 * gray + 0.45 * strong)).max() <= 1
    assert np.abs(pixels[80, 180] - (0.55 * gray + 0.45 * weak)).max() <= 1
    both = 0.55 * (0.55 * gray + 0.45 * weak) + 0.45 * strong
    assert np.abs(pixels[80, 75] - both).max() <= 1  # the stronger one on top
    assert tuple(pixels[80, 0]) == palette_color(0)
