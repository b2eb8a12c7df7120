"""Train, evaluate and deploy real-time detection transformers from one spec file. Imports nothing until asked."""

from __future__ import annotations

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("rtdetr-tool")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"
