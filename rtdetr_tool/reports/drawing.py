"""The look of charts, and a figure that becomes an image of a page."""

from __future__ import annotations

import io
import warnings
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from rtdetr_tool.reports.page import Chart

SIZE = (7.0, 4.2)  # inches
_DPI, _PIXELS_PER_INCH = 160, 80  # of the file, and on the page
GRAY, INK = "#b8c0cc", "#1c2430"
_COLORS = [
    "#1f6feb", "#d1570a", "#1a7f4b", "#a32cc4", "#c42b45", "#007c8a", "#8a6d00", "#5b5fc7", "#d6408f", "#4d7a1e",
    "#7a4b2a", "#3c4a5c",
]  # fmt: skip
_STYLE: Any = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8b95a3",
    "axes.labelcolor": "#5b6675",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6eaf0",
    "xtick.color": "#5b6675",
    "ytick.color": "#5b6675",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "figure.constrained_layout.use": True,
    "axes.prop_cycle": cycler(color=_COLORS),
}  # fmt: skip


styled = matplotlib.rc_context(_STYLE)  # as a decorator


class Drawing:
    """A figure in our style; `chart()` renders it."""

    def __init__(self, title: str, size: tuple[float, float] = SIZE) -> None:
        self.title = title
        self.figure = Figure(figsize=size)
        self.axes: Axes = self.figure.subplots()
        self.axes.set_title(literal(title))

    def chart(self, name: str) -> Chart:
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as boxes
            self.figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
        return Chart(name, self.title, buffer.getvalue(), width=round(self.figure.get_figwidth() * _PIXELS_PER_INCH))


def literal(text: str) -> str:
    """Text that matplotlib draws as it is: `$` would start a formula."""
    return text.replace("$", r"\$")


def shortened(name: str, length: int = 28) -> str:
    return literal(name if len(name) <= length else f"{name[: length - 1]}…")
