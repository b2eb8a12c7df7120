"""The version of this package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """As installed; `0+unknown` when run from a source tree that is not."""
    try:
        return version("rtdetr-tool")
    except PackageNotFoundError:
        return "0+unknown"
