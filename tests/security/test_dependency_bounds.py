"""Upper bounds block security fixes, so a dependency only has one if a test shows why."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
tomllib = pytest.importorskip("tomllib")

# Distribution -> the test (file::name) that fails with a newer version.
SHOWN_BY: dict[str, str] = {}


def bounded(texts: list[str]) -> set[str]:
    """Names of requirements with other bounds than lower ones."""
    requirements = [Requirement(text) for text in texts]
    return {r.name for r in requirements if r.url or any(s.operator not in (">=", ">", "!=") for s in r.specifier)}


def test_the_reader_sees_every_kind_of_bound():
    texts = ["a>=1", "b<2", "c==1", "d~=1.0", "e>=1,<=2", "f===1", "g", "h>=1,!=1.5", "i @ file:///x"]
    assert bounded(texts) == {"b", "c", "d", "e", "f", "i"}


def test_dependencies_have_upper_bounds_only_where_a_test_shows_why():
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = content["project"]
    texts = [*project["dependencies"], *content["build-system"]["requires"]]
    texts += [text for rows in project["optional-dependencies"].values() for text in rows]
    assert bounded(texts) == set(SHOWN_BY)
    for test in SHOWN_BY.values():
        file, name = test.split("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")
    assert not {"<", "=="} & set(project["requires-python"])
