"""A page (HTML, everything in the one file) of the images that a person should look at."""

from __future__ import annotations

import base64
import html
import io
from itertools import zip_longest

from PIL import Image

from rtdetr_tool.data.findings import KINDS, LEVELS, Findings, Suspect
from rtdetr_tool.data.preprocess import decode_image
from rtdetr_tool.errors import DataError
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.visualize import draw_boxes, palette_color

SIDE = 480  # pixels of the longer side of a picture on the page
MENDED = (255, 0, 0)  # color of a box that was clipped or dropped, as it was labeled

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff; }
table { border-collapse: collapse; } td, th { padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: left; }
figure { display: inline-block; vertical-align: top; width: 480px; margin: 0 1em 1.5em 0; }
img { max-width: 100%; } figcaption { overflow-wrap: anywhere; }
.error { color: #b00020; } .warning { color: #9a6700; } .note { color: #555; }
"""


def contact_sheet(findings: Findings, class_map: ClassMap | None, num_pictures: int) -> str:
    """The page: all findings as a table, and of each kind some of the images, the worst kinds first."""
    rows = "\n".join(
        f'<tr><td class="{found.level}">{found.level}</td><td>{found.split}</td><td>{found.count}</td>'
        f"<td>{html.escape(found.text)}</td><td>{html.escape(', '.join(found.examples))}</td></tr>"
        for found in findings
    )
    figures = "\n".join(_figure(suspect, class_map) for suspect in chosen(findings, num_pictures))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>rtdetr validate_data</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>Findings</h1>\n"
        "<table><tr><th></th><th>split</th><th>count</th><th>what</th><th>for example</th></tr>\n"
        f"{rows or '<tr><td>nothing that is wrong</td></tr>'}\n</table>\n<h1>Images to look at</h1>\n"
        f"{figures or '<p>none</p>'}\n</body></html>\n"
    )


def chosen(findings: Findings, count: int) -> list[Suspect]:
    """At most `count` suspects: one of each kind after the other, the worst kinds first."""
    by_kind: dict[str, list[Suspect]] = {kind: [] for kind in KINDS}
    for suspect in findings.suspects:
        by_kind[suspect.kind].append(suspect)
    rounds = zip_longest(*(by_kind[kind] for kind in sorted(by_kind, key=lambda k: LEVELS.index(KINDS[k][0]))))
    return [suspect for turn in rounds for suspect in turn if suspect is not None][:count]


def _figure(suspect: Suspect, class_map: ClassMap | None) -> str:
    level, text = KINDS[suspect.kind]
    try:
        content = base64.b64encode(_picture(suspect, class_map)).decode("ascii")
        shown = f'<img alt="" src="data:image/jpeg;base64,{content}">'
    except DataError:
        shown = ""
    caption = f'<b class="{level}">{html.escape(text)}</b><br>{suspect.split}: {html.escape(suspect.where)}'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _picture(suspect: Suspect, class_map: ClassMap | None) -> bytes:
    """The image as training sees it with its labels, made small, as JPEG; DataError where it cannot be read."""
    record = suspect.record
    wrong_size = suspect.kind == "image_size_differs"
    declared = (record.width, record.height) if record.width and not wrong_size else None
    picture = Image.fromarray(decode_image(record.path, declared).permute(1, 2, 0).numpy())
    width, height = picture.size
    picture.thumbnail((SIDE, SIDE))
    scale = (picture.width / width, picture.height / height) * 2
    labels = record.labels.tolist()
    boxes, colors = record.boxes.tolist(), [palette_color(label) for label in labels]
    names = [class_map.name_of(label) if class_map else str(label) for label in labels]
    if suspect.original is not None:
        boxes, colors, names = [*boxes, suspect.original], [*colors, MENDED], [*names, "as labeled"]
    small = [[value * by for value, by in zip(box, scale, strict=True)] for box in boxes]
    buffer = io.BytesIO()
    draw_boxes(picture, small, colors, names, 2).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
