"""Write requirements.lock and requirements-dev.lock: exact versions of the packages in this environment.

    .venv/bin/python scripts/lock_dependencies.py

The first file contains the runtime dependencies of pyproject.toml with all transitive ones, the second those of the
tests. Both are complete, so they install with `pip install --no-deps -r`.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent

# Tests compare our schema, our RF-DETR and our Triton configurations with these packages. They are installed without
# their dependencies, which are many or pin old versions; imported dependencies are listed here too.
ALONE = ("nvidia-tao-core", "rfdetr", "pyDeprecate", "tritonclient")

# Published for Linux only; torch for other systems does not need it.
LINUX_ONLY = re.compile(r"^(nvidia-(?!tao)|cuda-|triton$|tensorrt-rtx)")


def closure(requirements: Iterable[str]) -> dict[str, str]:
    """Name -> installed version of the requirements and of their dependencies on this system."""
    versions: dict[str, str] = {}
    seen: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        distribution = importlib.metadata.distribution(requirement.name)
        versions[canonicalize_name(requirement.name)] = distribution.version
        for text in distribution.requires or []:
            needed = Requirement(text)
            extras = ("", *requirement.extras)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                needed.marker = None
                waiting.append(needed)
    return versions


def lines(versions: dict[str, str]) -> list[str]:
    return [
        f"{name}=={version.split('+')[0]}" + ("; sys_platform == 'linux'" if LINUX_ONLY.match(name) else "")
        for name, version in sorted(versions.items())
    ]


def write(path: Path, purpose: str, versions: dict[str, str]) -> None:
    head = [
        f"# {purpose}",
        "# For Python 3.11 and later; install with `pip install --no-deps -r`. Written by lock_dependencies.py.",
    ]
    path.write_text("\n".join([*head, *lines(versions)]) + "\n", encoding="utf-8")
    print(f"wrote {path.name}: {len(versions)} packages")


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    build = ["setuptools"]  # for the editable install without a download
    run = closure([*project["dependencies"], *build])
    dev = closure([*project["dependencies"], *build, *project["optional-dependencies"]["dev"]])
    alone = {canonicalize_name(name): importlib.metadata.version(name) for name in ALONE}
    write(ROOT / "requirements.lock", "Runtime dependencies.", run)
    extra = {name: version for name, version in {**dev, **alone}.items() if name not in run}
    write(ROOT / "requirements-dev.lock", "Dependencies of tests and linting, in addition to requirements.lock.", extra)
    return 0


if __name__ == "__main__":
    sys.exit(main())
