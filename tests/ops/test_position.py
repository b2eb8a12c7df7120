from __future__ import annotations

import pytest
import torch

from rtdetr_tool.ops.position import sincos_position_2d


def test_values_are_sine_and_cosine_of_x_then_of_y():
    table = sincos_position_2d(2, 3, 8, temperature=100.0)
    assert table.shape == (6, 8)
    x, y = 2.0, 1.0  # the last row
    expected = [(x, 1), (x, 0.1), (y, 1), (y, 0.1)]
    sines = torch.tensor([value * scale for value, scale in expected])
    assert table[-1, [0, 1, 4, 5]].tolist() == pytest.approx(sines.sin().tolist())
    assert table[-1, [2, 3, 6, 7]].tolist() == pytest.approx(sines.cos().tolist())


def test_rows_run_over_y_inside_x_as_in_the_official_weights():
    table = sincos_position_2d(2, 3, 4)
    x = table[:, 0].asin().round().tolist()[:4]
    assert x == [0, 0, 1, 1]
    assert torch.equal(table[0::2, 2:], table[:1, 2:].expand(3, -1))  # y = 0 in every second row


def test_the_temperature_changes_the_table():
    assert not torch.equal(sincos_position_2d(3, 3, 8, 100.0), sincos_position_2d(3, 3, 8, 10000.0))
