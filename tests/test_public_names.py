"""The package's public names exist, and importing it is fast."""

import subprocess
import sys

import rtdetr_tool


def test_every_public_name_can_be_imported():
    for name in rtdetr_tool.__all__:
        assert getattr(rtdetr_tool, name) is not None


def test_importing_the_package_imports_nothing_large():
    large = ("torch", "pytorch_lightning", "hydra", "requests")
    code = f"import sys, rtdetr_tool; print([name for name in {large} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
