"""Nothing in the package or its scripts turns data into code: no pickle, eval, exec, shell or unsafe loader."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "rtdetr_tool").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])

# Allowed in one file only: the reader of weights, and the reader of specs with its own safe loader.
ALONE = {
    "import pickle": "rtdetr_tool/checkpoints/io.py",  # to name its exceptions
    "torch.load": "rtdetr_tool/checkpoints/io.py",
    "yaml.load": "rtdetr_tool/spec/documents.py",
}
# Calls that are harmless with one of these arguments.
HARMLESS_WITH = {
    "yaml.load": {("Loader", "yaml.BaseLoader"), ("Loader", "yaml.SafeLoader")},
    "np.load": {("allow_pickle", "False")},
}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler",
    "joblib.load", "shelve.open", "marshal.load", "marshal.loads", "dill.load", "cloudpickle.load", "torch.hub.load",
    "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "hydra.utils.instantiate", "instantiate",
    "OmegaConf.register_new_resolver", "np.load", "numpy.load", "torch.package.PackageImporter",
    "onnxruntime.SessionOptions.register_custom_ops_library",
}  # fmt: skip
FORBIDDEN_ARGUMENTS = {
    ("shell", "True"), ("allow_pickle", "True"), ("weights_only", "False"), ("trust_remote_code", "True")
}  # fmt: skip
FORBIDDEN_MODULES = {"dill", "joblib", "shelve", "marshal", "cloudpickle", "code", "codeop"}


def findings(source: str) -> Iterator[tuple[str, int]]:
    """(what, line) of everything that is forbidden, or allowed in one file only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                if name.split(".")[0] in FORBIDDEN_MODULES | {"pickle", "_pickle"}:
                    yield f"import {name}", node.lineno
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {(keyword.arg, ast.unparse(keyword.value)) for keyword in node.keywords}
        if name in FORBIDDEN_CALLS | {"torch.load", "yaml.load"} and not given & HARMLESS_WITH.get(name, set()):
            yield name, node.lineno
        for argument, value in sorted(given & FORBIDDEN_ARGUMENTS, key=str):
            yield f"{argument}={value}", node.lineno


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("eval('1')", "eval"),
        ("import os\nos.system('x')", "os.system"),
        ("import pickle as p", "import pickle"),
        ("from pickle import loads", "import pickle"),
        ("import subprocess\nsubprocess.run('x', shell=True)", "shell=True"),
        ("np.load('x', allow_pickle=True)", "np.load"),
        ("np.load('x')", "np.load"),
        ("f('x', allow_pickle=True)", "allow_pickle=True"),
        ("torch.load('x', weights_only=False)", "weights_only=False"),
        ("def f():\n    yaml.load(x, Loader=y)", "yaml.load"),
    ],
)
def test_the_reader_sees_each_form(source, what):
    assert what in {name for name, _ in findings(source)}


def test_nothing_turns_data_into_code():
    result = []
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        for what, line in findings(path.read_text(encoding="utf-8")):
            if ALONE.get(what) != name:
                result.append(f"{name}:{line}: {what}")
    assert result == []


def test_what_may_stand_in_one_file_does_stand_there():
    for what, name in ALONE.items():
        assert what in {result for result, _ in findings((ROOT / name).read_text(encoding="utf-8"))}


def test_the_one_loader_of_yaml_makes_plain_data_only():
    import yaml

    from rtdetr_tool.spec.documents import _loader

    assert issubclass(_loader(), yaml.SafeLoader)


def test_hydra_and_omegaconf_have_no_resolver_of_ours():
    import rtdetr_tool.spec  # noqa: F401
    from rtdetr_tool.spec import load_spec

    load_spec(None, ["train.seed=1"])
    from omegaconf import OmegaConf

    assert not OmegaConf.has_resolver("eval")
