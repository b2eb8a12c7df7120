"""The documentation site builds without warnings, and every page is in its navigation."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).parents[1]


def test_the_site_builds_in_strict_mode(tmp_path):
    for name in ("docs", "rtdetr_tool"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    page = (tmp_path / "site" / "api_reference" / "index.html").read_text(encoding="utf-8")
    assert 'id="rtdetr_tool.api.detector.Detector.predict"' in page


def test_every_page_is_in_the_navigation_once():
    text = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["project"]["docs_dir"] == "docs"
    listed = re.findall(r'= "([\w/]+\.md)"', text)
    assert sorted(listed) == sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))
