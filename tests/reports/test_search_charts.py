"""Charts of a search: the labels of parallel coordinates are readable."""

from __future__ import annotations

import pytest

pytest.importorskip("optuna")


@pytest.fixture
def axes(monkeypatch):
    """The axes of a chart with four parameters and twelve trials."""
    from rtdetr_tool.reports import search_charts

    drawings = []

    class Kept(search_charts.Drawing):
        def chart(self, name):
            drawings.append(self)
            return super().chart(name)

    monkeypatch.setattr(search_charts, "Drawing", Kept)
    columns = [("train.optim.lr", True), ("train.optim.lr_backbone", True), ("model.dec_layers", False), ("a.b", False)]
    rows = [
        [1.234e-5 * 1.5**n, 2.345e-5 * 1.6**n, n % 3 + 1, "a long choice" if n % 2 else "another"] for n in range(12)
    ]
    search_charts.parallel("parallel_coordinates", columns, rows, [0.0123 * n for n in range(12)])
    return drawings[0].axes


def test_no_label_of_parallel_coordinates_lies_on_a_line_or_on_another_label(axes):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(axes.figure)
    canvas.draw()
    labels = [text.get_window_extent(canvas.get_renderer()) for text in axes.texts if text.get_text()]
    assert len(labels) == 10
    for number, label in enumerate(labels):
        assert not [other for other in labels[number + 1 :] if label.overlaps(other)]
    lines = [line.get_transform().transform(line.get_xydata()) for line in axes.lines]
    lines += [axes.transData.transform(path) for lines in axes.collections for path in lines.get_segments()]
    assert len(lines) == 12 + 5
    for points in lines:
        low, high = points[:, 1].min(), points[:, 1].max()
        assert all(label.y0 > high or label.y1 < low for label in labels)
