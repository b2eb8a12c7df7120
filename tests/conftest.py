"""Shared by all tests: charts are drawn but not rendered, unless a test is about charts."""

from __future__ import annotations

import base64
import importlib.util

import pytest

_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(autouse=True)
def unrendered_charts(request, monkeypatch):
    """Skip rendering, which takes 0.1 s for each of twenty charts per run; `@pytest.mark.charts` enables it."""
    if request.node.get_closest_marker("charts") is None and importlib.util.find_spec("matplotlib"):
        from matplotlib.figure import Figure

        monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: file.write(_PIXEL))
