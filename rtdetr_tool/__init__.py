"""Train, evaluate and deploy real-time detection transformers from one spec file.

The public names are listed in `__init__.pyi` and imported on first use: `import rtdetr_tool` imports neither torch nor
Lightning.
"""

from __future__ import annotations

from typing import Any

import lazy_loader

_lazy_getattr, __dir__, _public = lazy_loader.attach_stub(__name__, __file__)

__all__ = ["__version__", *_public]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from rtdetr_tool.version import package_version

        return package_version()
    try:
        return _lazy_getattr(name)
    except AttributeError:
        if not name[:1].isupper():
            raise
    from rtdetr_tool import api  # classes of families that the stub does not list

    return getattr(api, name)
