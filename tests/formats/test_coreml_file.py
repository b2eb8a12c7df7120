"""Paths that are no Core ML packages, and systems that cannot run one; without coremltools."""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.errors import CheckpointError, UserError
from rtdetr_tool.files import replacing_directory
from rtdetr_tool.formats.base import OpenRequest
from rtdetr_tool.formats.coreml.file import MANIFEST, PROGRAM, read
from rtdetr_tool.formats.coreml.operators import OPERATORS
from rtdetr_tool.formats.table import FORMATS


def test_a_missing_package(tmp_path):
    with pytest.raises(CheckpointError, match="There is no Core ML package"):
        read(tmp_path / "no.mlpackage")


@pytest.mark.parametrize("missing", [MANIFEST, str(PROGRAM)])
def test_an_incomplete_package_is_named_with_what_is_missing(missing, tmp_path):
    for name in {MANIFEST, str(PROGRAM)} - {missing}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=f"is not a Core ML package: {missing} does not exist"):
        read(tmp_path)


@pytest.mark.parametrize("system", ["linux", "win32"])
def test_other_systems_than_macos_end_in_a_message(system, tmp_path, monkeypatch):
    for name in (MANIFEST, PROGRAM):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr("sys.platform", system)
    with pytest.raises(UserError, match="run on macOS, iOS and iPadOS only"):
        read(tmp_path, OpenRequest(None, torch.device("cpu")))
    assert [row.name for row in FORMATS.values() if row.other_systems()] == ["coreml"]
    monkeypatch.setattr("sys.platform", "darwin")
    assert FORMATS["coreml"].other_systems() is None


def test_a_directory_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model.mlpackage"
    for content in ("first", "second"):
        with replacing_directory(target) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [entry.name for entry in target.iterdir()] == ["second"]
    with pytest.raises(ValueError), replacing_directory(target) as temporary:
        temporary.mkdir()
        raise ValueError
    assert [entry.name for entry in tmp_path.rglob("*")] == ["model.mlpackage", "second"]


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("reshape", {"x": torch.arange(6.0).reshape(2, 3), "shape": [0, 3, -1]}, torch.arange(6.0).reshape(2, 3, 1)),
        ("tile", {"x": torch.tensor([[1.0], [2.0]]), "reps": [1, 2]}, torch.tensor([[1.0, 1.0], [2.0, 2.0]])),
        ("clip", {"x": torch.tensor([-1.0, 0.5, 2.0]), "alpha": 0.0, "beta": 1.0}, torch.tensor([0.0, 0.5, 1.0])),
        (
            "slice_by_index",
            {"x": torch.arange(4.0).reshape(2, 2), "begin": [-1, 0], "end": [0, 1], "squeeze_mask": [True, False],
             "end_mask": [True, True]},
            torch.tensor([2.0, 3.0]),
        ),
        (
            "gather_along_axis",
            {"x": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "indices": torch.tensor([[1, 0]]), "axis": 0},
            torch.tensor([[3.0, 2.0]]),
        ),
        (
            "avg_pool",
            {"x": torch.tensor([[[[1.0, 2.0, 3.0]]]]), "kernel_sizes": [1, 2], "strides": [1, 2], "pad_type": "custom",
             "pad": [0, 0, 0, 0], "exclude_padding_from_average": True, "ceil_mode": True},
            torch.tensor([[[[1.5, 3.0]]]]),
        ),
        (
            "conv",
            {"x": torch.ones(1, 1, 2, 2), "weight": torch.ones(1, 1, 2, 2), "strides": [1, 1], "pad_type": "custom",
             "pad": [1, 0, 0, 0]},
            torch.tensor([[[[2.0], [4.0]]]]),
        ),
        ("topk", {"x": torch.tensor([1.0, 3.0, 2.0]), "k": 2, "return_indices": False}, torch.tensor([3.0, 2.0])),
    ],
)  # fmt: skip
def test_an_operator_computes_what_mil_documents(name, arguments, expected):
    torch.testing.assert_close(OPERATORS[name](**arguments), expected)
