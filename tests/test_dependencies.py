"""Lock files, pyproject.toml and docs/dependencies.md agree with one another and with what the package imports."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
tomllib = pytest.importorskip("tomllib")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNTIME = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(text) for text in rows] for name, rows in PROJECT["optional-dependencies"].items()}

# Import name -> distribution, if they differ.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "hydra": "hydra-core", "lightning_fabric": "pytorch-lightning",
                 "cv2": "opencv-python-headless"}  # fmt: skip
# Needed by a dependency of ours that we name (hydra-core, omegaconf and pytorch-lightning could not do without).
# triton: of torch, where it has GPUs; OpenCV: of albumentations
THROUGH_OTHERS = {"pyyaml", "lightning-fabric", "packaging", "triton", "opencv-python-headless"}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[\w.]+", str(r.specifier)) and not r.url for r in requirements)
    return {canonicalize_name(r.name): str(r.specifier)[2:] for r in requirements}


def test_the_lock_pins_every_dependency_at_an_allowed_version():
    run, dev = pins("requirements.lock"), pins("requirements-dev.lock")
    assert not set(run) & set(dev)
    for requirement in RUNTIME:
        assert requirement.specifier.contains(run[canonicalize_name(requirement.name)]), requirement
    for requirement in EXTRAS["dev"]:
        assert requirement.specifier.contains({**run, **dev}[canonicalize_name(requirement.name)]), requirement


def test_the_locks_hold_no_address_and_the_program_no_engine():
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "://" not in text and "--" not in text.replace("--no-deps", "") and " @ " not in text
    assert "tensorrt" not in (ROOT / "requirements.lock").read_text(encoding="utf-8")


def test_every_dependency_has_its_reason():
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = {name for line in page.splitlines() for name in re.findall(r"^\| (?:`[\w-]+` \| )?([\w-]+) \|", line)}
    named = {requirement.name for group in (RUNTIME, *EXTRAS.values()) for requirement in group}
    assert named - rows == set()
    assert rows - named - {"package", "extra"} == {"nvidia-tao-core", "rfdetr", "setuptools", "tritonclient"}


def test_the_package_imports_nothing_that_is_not_a_declared_dependency():
    groups = [RUNTIME, *(group for name, group in EXTRAS.items() if name != "dev")]
    declared = {canonicalize_name(requirement.name) for group in groups for requirement in group}
    undeclared = set()
    for path in (ROOT / "rtdetr_tool").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in (name.split(".")[0] for name in names):
                distribution = canonicalize_name(DISTRIBUTIONS.get(name, name))
                if name != "rtdetr_tool" and name not in sys.stdlib_module_names and distribution not in declared:
                    undeclared.add(distribution)
    assert undeclared <= THROUGH_OTHERS
