"""The small project of the tests of the commands, for these tests too."""

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
    return _MODULE.Project(tmp_path)
