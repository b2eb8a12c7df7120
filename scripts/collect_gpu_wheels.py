"""Collect the wheels that `make gpu-check` needs on a GPU machine with PyTorch, but without network: `make gpu-wheels`.

    python scripts/collect_gpu_wheels.py [--folder gpu_wheels] [--has FILE] [--limit 64]

The versions are those of the lock files. torch and torchvision with their dependencies are expected on the machine;
`--has` names further packages that it has, as `pip list --format=freeze` prints them there. Wheels that are larger than
`--limit` together are divided among folders 1, 2, ... On the machine:

    python3 -m pip install --no-index --no-deps --target site gpu_wheels/*/*.whl && export PYTHONPATH=site:.
    python3 -m pytest -m gpu && python3 scripts/bench_gpu.py
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

sys.path.insert(0, str(Path(__file__).parent))
from lock_dependencies import closure

ROOT = Path(__file__).parents[1]
PROVIDED = ("torch", "torchvision")
TESTS = ("pytest", "pytest-timeout")
UNUSED = ("hf-xet", "tensorboard-data-server")  # accelerators of downloads and of the web server
GLIBC = range(17, 40)  # pip only accepts the platforms that are listed
MIB = 2**20
NO_WHEEL = re.compile(r"No matching distribution found for (\S+)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "gpu_wheels")
    parser.add_argument("--has", type=Path, help="file with the packages of the machine (pip list --format=freeze)")
    parser.add_argument("--limit", type=float, default=64, help="MiB of wheels in one folder (default 64)")
    parser.add_argument("--python", default="3.12", help="Python version of the machine (default 3.12)")
    options = parser.parse_args()
    present = names_in(options.has.read_text(encoding="utf-8")) if options.has else set()
    packages = required(locked(options.python), closure(TESTS), {*closure(PROVIDED), *UNUSED, *present})
    options.folder.mkdir(parents=True, exist_ok=True)
    for stale in [*options.folder.glob("*.whl"), *options.folder.glob("*/*.whl")]:
        stale.unlink()
    failure = fetch([f"{name}=={version}" for name, version in packages.items()], options.folder, options.python)
    if failure:
        print(failure, file=sys.stderr)
        return 1
    sizes = {path.name: path.stat().st_size for path in options.folder.glob("*.whl")}
    parts = divide(sizes, int(options.limit * MIB))
    for number, names in enumerate(parts, 1):
        part = options.folder / str(number)
        part.mkdir(exist_ok=True)
        for name in names:
            (options.folder / name).replace(part / name)
        print(f"Saved {len(names)} wheels ({sum(map(sizes.__getitem__, names)) / MIB:.1f} MiB) to {part}")
    return 0


def locked(python: str) -> dict[str, str]:
    """Name -> version in both lock files, of the packages that a Linux machine with this Python installs."""
    environment = {**default_environment(), "sys_platform": "linux", "platform_machine": "x86_64"}
    environment |= {"python_version": python, "python_full_version": f"{python}.0"}
    versions = {}
    for file in ("requirements.lock", "requirements-dev.lock"):
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
            requirement = Requirement(line) if line and not line.startswith("#") else None
            if requirement and (requirement.marker is None or requirement.marker.evaluate(environment)):
                versions[canonicalize_name(requirement.name)] = next(iter(requirement.specifier)).version
    return versions


def runtime_names() -> set[str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return names_in("\n".join(line for line in lines if not line.startswith("#")))


def required(versions: Mapping[str, str], tests: Iterable[str], provided: Iterable[str]) -> dict[str, str]:
    """Name -> version of the program's and the tests' packages, without those on the machine."""
    names = (runtime_names() | set(tests)) - set(provided)
    return {name: versions[name] for name in sorted(names) if name in versions}


def names_in(text: str) -> set[str]:
    """Package names at the beginning of each line."""
    return {canonicalize_name(name) for name in re.findall(r"^([A-Za-z0-9][\w.-]*)", text, re.MULTILINE)}


def platforms() -> list[str]:
    """Options of pip for all Linux platforms of x86-64, newest first."""
    names = [f"manylinux_2_{minor}_x86_64" for minor in reversed(GLIBC)]
    names += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    return [option for name in names for option in ("--platform", name)]


def fetch(requirements: Sequence[str], folder: Path, python: str) -> str | None:
    """Download wheels, and build those that exist as source only, which must be pure Python. Returns what failed."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    target = ["--python-version", python, "--implementation", "cp", "--only-binary=:all:", *platforms()]
    binary, source = list(requirements), []
    while binary:
        download = [*pip, "download", "--no-deps", "--dest", str(folder), *target, *binary]
        done = subprocess.run(download, capture_output=True, text=True)
        if done.returncode == 0:
            break
        missing = NO_WHEEL.search(done.stderr)
        if missing is None or missing[1] not in binary:
            return f"pip download failed: {done.stderr[-1000:]}"
        binary.remove(missing[1])
        source.append(missing[1])
    for requirement in source:
        before = set(folder.glob("*.whl"))
        done = subprocess.run(
            [*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), requirement], capture_output=True, text=True
        )
        built = set(folder.glob("*.whl")) - before
        if done.returncode or not built or not all(is_pure(path.name) for path in built):
            return f"{requirement}: no wheel for Python {python} on Linux, and it is not pure Python"
    return None


def is_pure(wheel: str) -> bool:
    """Whether a wheel runs with any Python 3 on any platform."""
    tags = parse_wheel_filename(wheel)[3]
    return any(tag.platform == "any" and tag.abi == "none" and tag.interpreter.startswith("py3") for tag in tags)


def divide(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in as few groups as first-fit finds, each of at most `limit` bytes.

    Raises:
        SystemExit: one is larger than the limit.
    """
    groups: list[list[str]] = []
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        if sizes[name] > limit:
            raise SystemExit(f"{name} has {sizes[name] / MIB:.1f} MiB; set --limit to at least that")
        fitting = (group for group in groups if sum(map(sizes.__getitem__, group)) + sizes[name] <= limit)
        group = next(fitting, None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return groups


if __name__ == "__main__":
    sys.exit(main())
