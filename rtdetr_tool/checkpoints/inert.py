"""Reading weights out of pickles that also hold settings of the program that wrote them.

`torch.load(weights_only=True)` refuses every object that is no tensor or plain data. Official files often keep the
command line (`argparse.Namespace`), a configuration (omegaconf) or numpy numbers beside the weights. Here each such
class, and no other, is replaced by an inert stand-in: it takes any argument and does nothing, so not even the code of
these classes runs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

# Full names, or all of a package with a trailing dot.
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


class Inert(dict):
    """In place of an object of another program: takes everything, does nothing."""

    def __new__(cls, *_args: Any, **_options: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_options: Any) -> None:
        super().__init__()

    def __setstate__(self, _state: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


class Settings(Inert):
    """In place of a namespace: its values by name, as a dictionary."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)


def stand_ins(path: Path) -> AbstractContextManager:
    """A context in which torch reads the settings in the file as `Inert`; it refuses everything else as always."""
    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except Exception:  # whatever is wrong with the file: reading it says so
        return nullcontext()
    return safe_globals([(_stand_in(name), name) for name in names if _is_harmless(name)])


def _stand_in(name: str) -> type[Inert]:
    return Settings if name in ("argparse.Namespace", "types.SimpleNamespace") else Inert


def _is_harmless(name: str) -> bool:
    return any(name == known or (known.endswith(".") and name.startswith(known)) for known in HARMLESS)
