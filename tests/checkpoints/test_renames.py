"""Tests of rtdetr_tool.checkpoints.renames."""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.checkpoints.renames import count, to_foreign, to_native
from rtdetr_tool.errors import CheckpointError

TABLE = (("layers.*.fc.*.", "blocks.*.linear.*."), ("layers.*.", "blocks.*."), ("norm", "norm"))


def test_numbers_are_kept_and_the_first_matching_row_applies():
    reference = {"layers.3.fc.12.weight": torch.ones(1), "layers.3.norm": torch.ones(2), "norm1.bias": torch.ones(3)}
    ours = to_native(reference, TABLE)
    assert list(ours) == ["blocks.3.linear.12.weight", "blocks.3.norm", "norm1.bias"]
    back = to_foreign(ours, TABLE)
    assert list(back) == list(reference) and all(back[name] is reference[name] for name in reference)


def test_a_dot_in_a_table_is_a_dot():
    with pytest.raises(CheckpointError, match="layersX3"):
        to_native({"layersX3.fc": torch.ones(1)}, TABLE)


def test_names_without_a_counterpart_are_listed_and_counted():
    with pytest.raises(CheckpointError, match=r"unknown tensors x0, .*x7 and 4 more"):
        to_native({f"x{number}": torch.ones(1) for number in range(12)}, TABLE)


def test_two_tensors_for_one_name_are_an_error():
    table = (("a.", "c."), ("b.", "c."))
    with pytest.raises(CheckpointError, match=r"two tensors map to c\.weight"):
        to_native({"a.weight": torch.ones(1), "b.weight": torch.ones(1)}, table)


def test_the_length_of_a_module_list_is_counted():
    assert count(["a.0.x", "a.0.y", "a.11.x", "ab.3.x"], "a.") == 2
