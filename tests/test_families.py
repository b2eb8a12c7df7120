"""Families are only named in their packages, in the table, and in the files listed here."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

from rtdetr_tool.checkpoints.family_weights import weights_of
from rtdetr_tool.families import FAMILIES, all_families, family_named, family_of
from rtdetr_tool.spec import ModelSpec

PACKAGE = Path(__file__).parents[1] / "rtdetr_tool"
NAMES = re.compile(r"rfdetr|dfine|families\.(rt|rf)detr|[\"']rtdetr[\"']|arch\s*(==|!=|in)\s*[\"'(]", re.IGNORECASE)

# Files outside of `families` that name one -> reason.
ALLOWED = {
    "__init__.pyi": "public names, for type checkers",
    "api/__init__.pyi": "public names, for type checkers",
    "catalog.py": "data of published models and layouts of graphs",
    "checkpoints/identify.py": "what TAO writes into its checkpoints",
    "checkpoints/published.py": "the program's cache folder",
    "cli.py": "the program's name",
    "commands/convert.py": "the program's name, a layout of files",
    "completion.py": "the program's name",
    "formats/description.py": "a layout of graphs, and the key of its notes",
    "reports/facts.py": "the program's name",
    "spec/augmentation.py": "names of policies of augmentation, which suit any family",
    "spec/augmentation_policy.py": "names of policies of augmentation, which suit any family",
    "spec/experiment.py": "the program's name, an experiment of MLflow",
    "spec/launcher.py": "the program's name in TAO's launcher",
    "rfdetr.py": "public names",
    "workflows/serving/predictor.py": "the program's name",
    "workflows/convert.py": "the program's name, a layout of files",
}


def text_of(path: Path) -> str:
    """The code of a file without comments and docstrings: these may give a family as an example."""
    source = path.read_text(encoding="utf-8")
    kept, starts_line = [], True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        docstring = token.type == tokenize.STRING and starts_line and token.string.lstrip("rR").startswith('"""')
        if token.type != tokenize.COMMENT and not docstring:
            kept.append(token.string)
        starts_line = token.type in (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT)
    return " ".join(kept).replace(" . ", ".")


def files() -> list[Path]:
    result = [path for suffix in ("*.py", "*.pyi") for path in PACKAGE.rglob(suffix)]
    return sorted(path for path in result if path.relative_to(PACKAGE).parts[0] != "families")


def test_no_file_outside_of_the_families_names_one():
    naming = {path.relative_to(PACKAGE).as_posix() for path in files() if NAMES.search(text_of(path))}
    assert naming - set(ALLOWED) == set()


@pytest.mark.parametrize(
    "source",
    ['if arch == "rtdetr": pass', 'x = {"rfdetr": 1}', "from rtdetr_tool.families.rtdetr.build import a", "RFDETR()"],
)
def test_the_search_finds_each_form(tmp_path, source):
    path = tmp_path / "module.py"
    path.write_text(f'"""RFDETR in a docstring."""\n{source}  # rfdetr\n')
    assert NAMES.search(text_of(path))


@pytest.mark.parametrize("name", FAMILIES)
class TestEachFamily:
    def test_its_package_has_the_modules_of_the_contract(self, name):
        family = family_named(name)
        assert family.name == name and family_of(name) is family
        for module, members in {
            "build": ("build_detector", "build_criterion"),
            "weights": ("FORMATS", "is_complete", "native_names", "describe", "WRITERS", "summary", "read_backbone"),
            "api": ("class_of", "__all__"),
        }.items():
            assert [member for member in members if not hasattr(family.module(module), member)] == []
        assert (PACKAGE / "families" / name / "model").is_dir() and (PACKAGE / "families" / name / "spec.py").is_file()

    def test_its_detector_is_known_by_its_tensors_and_keeps_the_promises_of_its_spec(self, name):
        model = ModelSpec(arch=name)
        detector = model.family.module("build").build_detector(model, model.family.class_rows(2), False)
        known = [other.name for other in all_families() if weights_of(other).is_complete(detector.state_dict())]
        assert known == [name]
        assert detector.size_multiple == model.size_multiple
        assert detector.predicts == model.predicts


def test_a_name_that_is_no_family_stands_for_the_default_one():
    assert family_of("detr").name == family_of(None).name == family_of(["rfdetr"]).name == "rtdetr"
