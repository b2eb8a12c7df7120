"""What all tests share: charts that are not what a test is about are drawn but not rendered."""

from __future__ import annotations

import base64
import importlib.util

import pytest

_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(autouse=True)
def unrendered_charts(request, monkeypatch):
    """Rendering takes 0.1 s per chart and every run has twenty; `@pytest.mark.charts` renders them."""
    if request.node.get_closest_marker("charts") is None and importlib.util.find_spec("matplotlib"):
        from matplotlib.figure import Figure

        monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: file.write(_PIXEL))
