"""The wheels for a GPU machine: which packages, for which platform, and in folders of limited size."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("collect_gpu_wheels", ROOT / "scripts" / "collect_gpu_wheels.py")
script = importlib.util.module_from_spec(spec)
sys.modules["collect_gpu_wheels"] = script
spec.loader.exec_module(script)


def test_the_packages_are_all_dependencies_but_those_of_torch_and_of_the_machine():
    provided = {*script.closure(script.PROVIDED), "scipy"}
    packages = script.required(script.locked("3.12"), script.closure(script.TESTS), provided)
    needed = ("hydra-core", "omegaconf", "antlr4-python3-runtime", "pycocotools", "hotcoco", "pytorch-lightning")
    assert {*needed, "torchmetrics", "timm", "pytest", "pluggy"} <= packages.keys()
    assert not {"torch", "torchvision", "numpy", "pillow", "sympy", "nvidia-cublas", "scipy"} & packages.keys()
    assert packages["antlr4-python3-runtime"] == "4.9.3"  # omegaconf requires this version, which has no wheel
    assert all(re.fullmatch(r"[\w.+!-]+", version) for version in packages.values())


def test_packages_of_the_machine_are_read_from_the_output_of_pip():
    text = "scipy==1.16.0\nPyYAML==6.0\ntyping_extensions @ file:///a.whl\n-e git+https://host/x#egg=x\n"
    assert script.names_in(text) == {"scipy", "pyyaml", "typing-extensions"}


@pytest.mark.parametrize(
    ("wheel", "pure"),
    [
        ("antlr4_python3_runtime-4.9.3-py3-none-any.whl", True),
        ("six-1.17.0-py2.py3-none-any.whl", True),
        ("scipy-1.17.1-cp311-cp311-linux_x86_64.whl", False),
    ],
)
def test_wheels_that_are_built_here_must_run_with_another_python(wheel, pure):
    assert script.is_pure(wheel) is pure


def test_wheels_are_divided_into_folders_below_the_limit():
    sizes = {"a.whl": 35, "b.whl": 23, "c.whl": 10, "d.whl": 9, "e.whl": 1}
    groups = script.divide(sizes, 40)
    assert sorted(name for group in groups for name in group) == sorted(sizes)
    assert len(groups) == 3  # 78 MiB do not fit into 2 x 40 MiB with these sizes
    assert all(sum(sizes[name] for name in group) <= 40 for group in groups)
    assert script.divide(sizes, 100) == [["a.whl", "b.whl", "c.whl", "d.whl", "e.whl"]]
    with pytest.raises(SystemExit, match=r"a\.whl"):
        script.divide(sizes, 30)
