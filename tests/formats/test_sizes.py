"""The size of a model on disk, with what belongs to its file."""

from __future__ import annotations

import pytest

from rtdetr_tool.formats.table import size_of


@pytest.mark.parametrize(
    ("files", "path", "expected"),
    [
        ({"model.pth": 5}, "model.pth", 5),
        ({"model.xml": 5, "model.bin": 700, "other.bin": 1}, "model.xml", 705),
        ({"model.onnx": 5, "model.onnx.data": 700}, "model.onnx", 705),
        ({"model.onnx": 5, "model.bin": 700}, "model.onnx", 5),
        ({"model.mlpackage/Manifest.json": 5, "model.mlpackage/Data/weights/weight.bin": 700}, "model.mlpackage", 705),
    ],
)
def test_weights_next_to_a_file_and_in_a_directory_count(files, path, expected, tmp_path):
    for name, size in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    assert size_of(tmp_path / path) == expected
