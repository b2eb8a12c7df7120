"""The version of this package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """The installed version; `0+unknown` for a source tree that is not installed."""
    try:
        return version("rtdetr-tool")
    except PackageNotFoundError:
        return "0+unknown"
