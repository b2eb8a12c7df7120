"""Write a page and its charts into a results folder."""

from __future__ import annotations

from pathlib import Path

from rtdetr_tool.files import make_folder_below, write_atomically
from rtdetr_tool.reports.page import Page

PAGE, CHARTS = "report.html", "plots"


def write_page(page: Page, folder: Path) -> Path:
    """Write `report.html` and the charts as `plots/<name>.png`; returns the path of the page."""
    if page.charts:
        make_folder_below(folder, folder / CHARTS)
    for chart in page.charts:
        write_atomically(folder / CHARTS / f"{chart.name}.png", chart.png)
    write_atomically(folder / PAGE, page.html())
    return folder / PAGE
