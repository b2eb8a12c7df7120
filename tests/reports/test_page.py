"""Pages are self-contained, escape what they show, and skip what is empty."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from rtdetr_tool.metrics.analysis import Confusion
from rtdetr_tool.reports import charts
from rtdetr_tool.reports.charts import Series
from rtdetr_tool.reports.files import write_page
from rtdetr_tool.reports.page import CaptionedImage, Code, Gallery, Page, Section, Table, Text


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]


def parsed(html: str) -> _Parser:
    parser = _Parser()
    parser.feed(html)
    return parser


def image_of(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def test_text_from_the_data_is_escaped_in_every_block():
    evil = "<script>alert(1)</script>"
    blocks = [
        Table([evil], [[evil]], caption=evil),
        Text(evil),
        Code(evil, evil),
        Gallery([CaptionedImage(b"x", evil, evil)]),
    ]
    parser = parsed(Page(evil, evil, [(evil, evil)], [Section(evil, blocks)]).html())
    assert "script" not in parser.tags and parser.tags.count("td") == 1


def test_a_page_refers_to_nothing_outside_itself(tmp_path):
    chart = charts.lines("loss", "Loss", [Series("train", [1, 2], [3.0, 1.0])], "step")
    blocks = [chart, Gallery([CaptionedImage(b"jpeg", "one")])]
    file = write_page(Page("Run", sections=[Section("A", blocks), Section("B", [Text("text")])]), tmp_path)
    links = parsed(file.read_text()).links
    assert links and all(link.startswith(("data:image/", "#s")) for link in links)
    assert re.findall(r"https?://", file.read_text()) == []
    assert (tmp_path / "plots" / "loss.png").read_bytes() == chart.png


def test_sections_without_blocks_are_skipped():
    html = Page("Run", sections=[Section("Empty", []), Section("Full", [Text("text")])]).html()
    assert "Full" in html and "Empty" not in html


def test_columns_of_numbers_are_aligned_to_the_right():
    table = Table(["class", "AP", "count", "note"], [["cat", "0.5", "1,200", "12 px"], ["dog", "-", "7", ""]])
    assert table.numeric == [False, True, True, False]


def test_a_link_in_place_of_the_chart_folder_is_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "plots").symlink_to(outside)
    chart = charts.lines("loss", "Loss", [Series("train", [1], [3.0])], "step")
    with pytest.raises(OSError, match="link that points outside"):
        write_page(Page("Run", sections=[Section("A", [chart])]), folder)
    assert list(outside.iterdir()) == []


@pytest.mark.charts
def test_charts_are_rendered_as_png_whatever_the_names_and_values():
    names = ["a$b$", "$x^", "日本", "x" * 200, "", "<b>"]
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 9, (len(names) + 1, len(names) + 1))
    drawn = [
        charts.lines("c", "$", [Series(name, [1, 2, 3], rng.random(3), marked=True) for name in names * 3], "step"),
        charts.lines("c", "none", [], "step"),
        charts.bars("c", "b", {"train": [1.0] * 6, "val": [0.0] * 6}, names),
        charts.histogram("c", "h", {"train": np.array([5.0, 5.0]), "val": np.zeros(0)}, "x"),
        charts.histogram("c", "h", {"train": np.zeros(0)}, "x", log_x=True),
        charts.histogram("c", "h", {"train": np.array([1.0, 2.0, 900.0])}, "x", whole=True),
        charts.confusion("c", Confusion(names, matrix, 0.5)),
    ]
    for chart in drawn:
        size = image_of(chart.png).size
        assert size[0] == chart.width * 2 and size[1] > 200


@pytest.mark.charts
def test_a_confusion_matrix_of_many_classes_stays_a_small_image():
    names = [f"class {number}" for number in range(400)]
    chart = charts.confusion("c", Confusion(names, np.eye(401, dtype=np.int64), 0.5))
    assert image_of(chart.png).size[0] <= 1400
