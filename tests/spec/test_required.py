"""What a command can rely on once its spec has been checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec import MISSING, EvaluateSpec, spec_from_dict
from rtdetr_tool.spec.required import required, results_folder


@pytest.mark.parametrize("value", [None, "", MISSING])
def test_a_required_field_without_a_value_is_an_error_that_names_it(value):
    with pytest.raises(SpecError, match=r"export\.checkpoint: required, but not set"):
        required(value, "export.checkpoint")


def test_a_required_field_has_its_value():
    assert required("a.pth", "export.checkpoint") == "a.pth"
    assert required(0, "dataset.num_classes") == 0


def test_the_results_folder_of_a_command_follows_from_the_root_or_is_its_own():
    spec = spec_from_dict({"results_dir": "out", "export": {"checkpoint": "a.pth", "onnx_file": "a.onnx"}}, "export")
    assert results_folder(spec.export, "export") == Path("out/export")
    assert results_folder(EvaluateSpec(results_dir="mine"), "evaluate") == Path("mine")


@pytest.mark.parametrize("section", [None, EvaluateSpec()])
def test_a_command_without_a_results_folder_is_an_error(section):
    with pytest.raises(SpecError, match=r"evaluate\.results_dir: required, but not set"):
        results_folder(section, "evaluate")
