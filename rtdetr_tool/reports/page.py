"""A report page: sections of tables, charts, images and text in one HTML file without external references."""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import jinja2


@dataclass(frozen=True)
class Chart:
    """A chart as PNG; `name` is also the name of its file, `width` its width on the page in pixels."""

    name: str
    title: str
    png: bytes
    width: int = 560
    kind: Literal["chart"] = "chart"

    @property
    def data(self) -> str:
        return _data_url(self.png, "png")


@dataclass(frozen=True)
class Table:
    """Rows of texts under `columns`; columns with only numbers are aligned to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    levels: Sequence[str] = ()  # error, warning or note per row: its color
    kind: Literal["table"] = "table"

    @property
    def numeric(self) -> list[bool]:
        return [
            bool(self.rows) and all(_is_number(row[column]) for row in self.rows) for column in range(len(self.columns))
        ]


@dataclass(frozen=True)
class CaptionedImage:
    """An image (JPEG) with a caption; `level` colors the first line of the caption."""

    jpeg: bytes | None
    title: str
    text: str = ""
    level: str = ""

    @property
    def data(self) -> str:
        return _data_url(self.jpeg or b"", "jpeg")


@dataclass(frozen=True)
class Gallery:
    """Images in a grid; `wide` for images that show two next to each other."""

    images: Sequence[CaptionedImage]
    wide: bool = False
    kind: Literal["gallery"] = "gallery"


@dataclass(frozen=True)
class Text:
    text: str
    kind: Literal["text"] = "text"


@dataclass(frozen=True)
class Code:
    """Preformatted text that is folded away."""

    title: str
    text: str
    kind: Literal["code"] = "code"


Block = Chart | Table | Gallery | Text | Code


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A page: headline, the few most important values as tiles, sections."""

    title: str
    subtitle: str = ""
    tiles: Sequence[tuple[str, str]] = ()  # label, value
    sections: Sequence[Section] = field(default_factory=list)

    @property
    def charts(self) -> list[Chart]:
        return [block for section in self.sections for block in section.blocks if isinstance(block, Chart)]

    def html(self) -> str:
        """The page; sections without blocks are skipped."""
        sections = [section for section in self.sections if section.blocks]
        return _template().render(page=self, sections=sections)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rtdetr_tool.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "").removesuffix("%").strip() or "nan")
    except ValueError:
        return text in ("-", "")
    return True
