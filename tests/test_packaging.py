"""The wheel and sdist are complete and work outside of the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TRACKED = ("rtdetr_tool", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the wheel and the sdist, built from a copy so that the checkout stays clean."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in TRACKED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    build = f"from setuptools import build_meta as b; b.build_sdist({str(folder)!r}); b.build_wheel({str(folder)!r})"
    run = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


def test_the_wheel_holds_every_module_the_licenses_and_the_type_marker(built):
    names = set(zipfile.ZipFile(next(built.glob("*.whl"))).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "rtdetr_tool").rglob("*.py")}
    assert modules <= names
    assert "rtdetr_tool/py.typed" in names
    assert {name.rsplit("/", 1)[-1] for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}
    assert not [name for name in names if name.startswith(("tests/", "scripts/"))]


def test_the_sdist_holds_what_a_build_needs(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "NOTICE", "rtdetr_tool/cli.py"} <= names


def test_the_wheel_works_outside_of_the_checkout(built, tmp_path):
    """Install the wheel in a new environment, with the dependencies of the test environment."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": tmp_path / "env", "platbase": tmp_path / "env"}))
    zipfile.ZipFile(next(built.glob("*.whl"))).extractall(packages)
    # A plain path entry: .pth files over there (editable installs of this checkout) are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    script = (
        "import rtdetr_tool, numpy as np\n"
        "from rtdetr_tool import RTDETR\n"
        "detections = RTDETR('resnet_18', num_classes=3, hidden_dim=32, feat_channels=[32, 32, 32], nheads=4,\n"
        "                    dim_feedforward=64, num_queries=20, num_select=20, dec_layers=1, device='cpu')"
        ".predict(np.zeros((64, 64, 3), np.uint8), threshold=0.0)\n"
        "print(rtdetr_tool.__file__, len(detections.xyxy))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    predicted = subprocess.run([python, "-c", script], **run)
    assert predicted.returncode == 0, predicted.stderr
    assert predicted.stdout.split() == [str(packages / "rtdetr_tool" / "__init__.py"), "20"]
    helped = subprocess.run([python, "-m", "rtdetr_tool", "--help"], **run)
    assert helped.returncode == 0 and "gen_trt_engine" in helped.stdout
    specs = subprocess.run([python, "-m", "rtdetr_tool", "default_specs", "train"], **run)
    assert specs.returncode == 0 and "num_epochs: 10" in specs.stdout
