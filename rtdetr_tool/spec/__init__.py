"""The spec: what it holds, how it is read and checked. Nothing here imports torch.

The public names are listed in `__init__.pyi` and imported on first use, because sections of model families
(`families/<name>/spec.py`) are made of `spec.fields` and part of `spec.model`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
