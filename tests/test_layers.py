"""Every import of the package follows the layer table of docs/architecture.md, which is read from the page."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from rtdetr_tool.families import FAMILIES

PACKAGE = Path(__file__).parents[1] / "rtdetr_tool"

# A component (a top-level package or module) may import those in rows above; those in one row are independent.


def layers_of_the_page() -> tuple[tuple[str, ...], ...]:
    """The rows of the layer table, top down."""
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", page, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(len(rows)))
    return tuple(tuple(re.findall(r"`(\w+)`", packages)) for _, packages in rows)


LAYERS = layers_of_the_page()
LEVEL = {component: level for level, components in enumerate(LAYERS) for component in components}
SHARED = LAYERS[LEVEL["models"]]
ENTRANCES = LAYERS[-1]  # entry points, which may import one another

# Components that work without torch: help, spec errors and default_specs come from these.
WITHOUT_TORCH = (*LAYERS[0], *LAYERS[1], *LAYERS[2], "completion", "cli", "__init__", "__main__")
HEAVY = ("torch", "torchvision", "pytorch_lightning", "timm", "transformers", "onnx", "onnxruntime")

FILES = sorted(PACKAGE.rglob("*.py"))
VAGUE_NAMES = {"utils", "util", "misc", "helpers", "helper", "common"}


# Modules of a family that belong to `spec`: what it declares, without its network.
DECLARATIONS = ("__init__", "family", "spec", "resolved", "checks", "recipe", "keywords", "keyword_rules")


# Modules of a family that belong to `api`.
IN_THE_API = ("api", "api_base", "api_parts", "configs", "context", "primitives", "roboflow", "run_files")


def component_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return component_in_families(parts) or parts[0]


def component_in_families(parts: Sequence[str]) -> str | None:
    """The component that a module of `families` belongs to (or a name in one), by the parts of its path; else None."""
    if declares_a_family(parts) or lists_formats(parts):
        return "spec"
    return "api" if parts[0] == "families" and len(parts) > 2 and parts[2] in IN_THE_API else None


def declares_a_family(parts: Sequence[str]) -> bool:
    """Whether a module (or a name in it), by the parts of its path, is the table of families or a declaration."""
    if parts[0] != "families":
        return False
    return len(parts) == 1 or parts[1] not in FAMILIES or (len(parts) > 2 and parts[2] in DECLARATIONS)


def lists_formats(parts: Sequence[str]) -> bool:
    """Whether a module (or a name in it), by the parts of its path, is the table of deployment formats."""
    return parts[0] == "formats" and (len(parts) == 1 or parts[1] in ("__init__", "table"))


def imports(path: Path, source: str | None = None) -> Iterator[tuple[str, int, bool]]:
    """Absolute name, line and whether it happens when the module is loaded, for every import of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8") if source is None else source)
    package = ("rtdetr_tool", *path.relative_to(PACKAGE).parent.parts)

    def visit(node: ast.AST, on_load: bool) -> Iterator[tuple[str, int, bool]]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, on_load
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno, on_load
        inner = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        inner |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, on_load and not inner)

    yield from visit(tree, True)


def imported_component(name: str) -> str | None:
    """The component of this package that an imported name is in; None for other packages."""
    first, *rest = name.split(".")
    if first != "rtdetr_tool":
        return None
    if rest and (component := component_in_families(rest)):
        return component
    return rest[0] if rest and rest[0] in LEVEL else "__init__"


def violations(path: Path, source: str | None = None) -> list[str]:
    """Each import of a file from a higher layer or the same one."""
    component = component_of(path)
    result = []
    for name, line, _ in imports(path, source):
        other = imported_component(name)
        if other is None or other == component or (component in ENTRANCES and other in ENTRANCES):
            continue
        if LEVEL[other] >= LEVEL[component]:
            result.append(f"{path.relative_to(PACKAGE.parent)}:{line}: {component} may not import {other} ({name})")
    return result


def test_every_component_is_in_the_table():
    components = {component_of(path) for path in FILES}
    assert components - set(LEVEL) == set()
    assert {"spec", "ops", "data", "models", "training", "formats", "commands", "cli"} <= components


def test_every_package_says_what_it_is():
    silent = [path for path in PACKAGE.rglob("__init__.py") if not ast.get_docstring(ast.parse(path.read_bytes()))]
    assert silent == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_rows_above_its_own(path):
    assert violations(path) == []


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("ops/boxes.py", "from rtdetr_tool.data.build import build_loader", "ops may not import data"),
        ("data/build.py", "def f():\n    from rtdetr_tool import models", "data may not import models"),
        ("spec/load.py", "import rtdetr_tool.ops.boxes", "spec may not import ops"),
        ("training/module.py", "from ..commands import train", "training may not import commands"),
        ("losses/criterion.py", "from rtdetr_tool import __version__", "losses may not import __init__"),
        ("losses/criterion.py", "from . import matcher\nfrom rtdetr_tool.ops.boxes import box_iou\nimport torch", None),
    ],
)
def test_the_reader_of_imports_sees_each_form(file, source, wrong):
    result = violations(PACKAGE / file, source)
    assert ([] if wrong is None else [wrong]) == [text.split(": ", 1)[1].split(" (")[0] for text in result]


def test_the_python_api_does_not_import_the_command_line():
    result = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in FILES
        if component_of(path) == "api"
        for name, line, _ in imports(path)
        if imported_component(name) in ("commands", "cli")
    ]
    assert result == []


def test_a_command_is_short():
    """It parses, calls a workflow and prints; missing_inputs, run_lock, session, signals and tables serve all."""
    shared = {"__init__.py", "missing_inputs.py", "run_lock.py", "session.py", "signals.py", "tables.py"}
    files = [path for path in (PACKAGE / "commands").glob("*.py") if path.name not in shared]
    assert {path.name: n for path in files if (n := len(path.read_text(encoding="utf-8").splitlines())) > 80} == {}


SEES_A_SPEC = (
    "build.py", "build_augmentation.py", "build_sources.py", "weights.py", "package_file.py",  # the last two: files
)  # fmt: skip


def test_only_build_files_of_the_shared_parts_and_the_families_see_a_spec():
    result = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in FILES
        if component_of(path) in (*SHARED, "families") and path.name not in SEES_A_SPEC
        for name, line, _ in imports(path)
        if imported_component(name) == "spec"
    ]
    assert result == []


def test_help_and_the_spec_load_no_torch_when_imported():
    result = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in FILES
        if component_of(path) in WITHOUT_TORCH
        for name, line, on_load in imports(path)
        if on_load and name.split(".")[0] in HEAVY
    ]
    assert result == []


def test_importing_components_without_torch_does_not_import_it():
    names = [f"rtdetr_tool.{component}" for component in WITHOUT_TORCH if not component.startswith("__")]
    names += ["rtdetr_tool", "rtdetr_tool.commands.session", "rtdetr_tool.commands.default_specs"]
    code = f"import sys, importlib\nfor name in {names!r}: importlib.import_module(name)\n"
    code += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert run.stdout.strip() == "[]"


def test_commands_without_a_network_and_data_workers_do_not_import_torchvision_and_timm():
    names = [f"rtdetr_tool.commands.{name}" for name in ("evaluate", "inference", "gen_trt_engine", "validate_data")]
    names += ["rtdetr_tool.commands.automl", "rtdetr_tool.data.build", "rtdetr_tool.data.loader"]
    slow = ("torchvision", "timm", "requests", "pytorch_lightning", "transformers")
    code = f"import sys, importlib\nfor name in {names!r}: importlib.import_module(name)\n"
    code += f"print([name for name in {slow!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert run.stdout.strip() == "[]"


def test_only_training_imports_lightning():
    result = {
        component_of(path)
        for path in FILES
        for name, _, _ in imports(path)
        if name.split(".")[0] in ("pytorch_lightning", "lightning", "lightning_fabric")
    }
    assert result == {"training"}


def calls(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted name and line of every call whose target is a plain or dotted name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            yield ast.unparse(node.func), node.lineno


def test_weights_are_read_and_saved_in_one_file_only():
    result = {path for path in FILES for name, _ in calls(path) if name in ("torch.load", "torch.save")}
    assert result == {PACKAGE / "checkpoints" / "io.py"}


def test_every_torch_load_is_restricted_to_weights():
    tree = ast.parse((PACKAGE / "checkpoints" / "io.py").read_text(encoding="utf-8"))
    loads = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "torch.load"]
    assert loads
    for call in loads:
        assert {k.arg: ast.unparse(k.value) for k in call.keywords}.get("weights_only") == "True"


def test_nothing_evaluates_text_or_unpickles():
    forbidden = {"eval", "exec", "pickle.load", "pickle.loads", "os.system", "yaml.full_load", "yaml.unsafe_load"}
    result = [f"{p.relative_to(PACKAGE)}:{line}: {name}" for p in FILES for name, line in calls(p) if name in forbidden]
    assert result == []


def test_a_spec_with_a_python_tag_is_refused_and_runs_nothing(tmp_path):
    from rtdetr_tool.errors import SpecError
    from rtdetr_tool.spec.documents import read_file

    mark, spec = tmp_path / "ran", tmp_path / "spec.yaml"
    spec.write_text(f"results_dir: !!python/object/apply:os.mkdir ['{mark}']\n")
    with pytest.raises(SpecError, match="not valid YAML"):
        read_file(spec)
    assert not mark.exists()


def test_no_file_has_a_name_that_says_nothing():
    assert [str(path) for path in FILES if VAGUE_NAMES & set(path.relative_to(PACKAGE).with_suffix("").parts)] == []
