"""The small project of the tests of the commands, with a smaller detector."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_FILE = Path(__file__).parents[1] / "commands" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("conftest_of_commands", _FILE)
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)


@pytest.fixture
def project(tmp_path):
    project = _MODULE.Project(tmp_path)
    project.spec["model"]["backbone"] = "timm/test_resnet"
    project.write()
    return project
