"""Safely unpickle checkpoints that also contain the settings of the program that wrote them.

`torch.load(weights_only=True)` refuses everything except tensors and plain data. Official files often also contain the
command line (`argparse.Namespace`), a configuration (omegaconf) or numpy numbers. Each class listed here, and no other,
is replaced by a placeholder that accepts any arguments and does nothing, so that no code of these classes runs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

# Full names, or a package with a trailing dot.
HARMLESS = (
    "argparse.Namespace",
    "collections.defaultdict",
    "datetime.datetime",
    "datetime.timedelta",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "omegaconf.",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "pathlib.WindowsPath",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "types.SimpleNamespace",
    "typing.Any",
    "builtins.bool",
    "builtins.dict",
    "builtins.float",
    "builtins.int",
    "builtins.list",
    "builtins.set",
    "builtins.str",
    "builtins.tuple",
)


class Placeholder(dict[Any, Any]):
    """Takes the place of an object of another program: accepts any arguments and does nothing."""

    def __new__(cls, *_args: Any, **_options: Any) -> Placeholder:
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_options: Any) -> None:
        super().__init__()

    def __setstate__(self, _state: Any) -> None:
        pass

    def __hash__(self) -> int:  # type: ignore[override]  # unlike a dictionary, it may be a key in a pickle
        return id(self)


class NamespacePlaceholder(Placeholder):
    """Takes the place of a namespace, with its values as a dictionary."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)


def known_settings_allowed(path: Path) -> AbstractContextManager[object]:
    """A context in which torch reads known settings in the file as `Placeholder` and refuses all other objects."""
    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except Exception:  # reading the file reports what is wrong with it
        return nullcontext()
    return safe_globals([(_placeholder_for(name), name) for name in names if _is_harmless(name)])


def _placeholder_for(name: str) -> type[Placeholder]:
    return NamespacePlaceholder if name in ("argparse.Namespace", "types.SimpleNamespace") else Placeholder


def _is_harmless(name: str) -> bool:
    return any(name == known or (known.endswith(".") and name.startswith(known)) for known in HARMLESS)
