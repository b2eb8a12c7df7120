"""Parse the XML of Pascal VOC files."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from rtdetr_tool.data.source import (
    read_bytes,
)
from rtdetr_tool.errors import DataError


class _PlainTree(ElementTree.TreeBuilder):
    """Refuses document types, because entities declared there can expand to gigabytes."""

    def doctype(self, *_: object) -> None:
        raise DataError("a document type (<!DOCTYPE ...>) is not supported; remove it")


def parse_xml(path: str) -> ElementTree.Element:
    data = read_bytes(path, "The annotation file")
    try:
        root = ElementTree.fromstring(data, ElementTree.XMLParser(target=_PlainTree()))
    except (DataError, ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise DataError(f"{path} is not a valid Pascal VOC annotation: {error}.") from error
    if root.tag != "annotation":
        raise DataError(f"{path} is not a valid Pascal VOC annotation: expected the root element <annotation>.")
    return root


def text_of(entry: ElementTree.Element, name: str) -> str:
    return (entry.findtext(name) or "").strip()


def number_of(entry: ElementTree.Element, name: str) -> float | None:
    try:
        return float(text_of(entry, name))
    except ValueError:
        return None
