"""Opening anybody's detector: weights by our names, and what the file, its neighbours and its shapes tell.

Read are our own checkpoints, NVIDIA TAO's, the official RT-DETR's (version 1 and 2), Hugging Face transformers' (a
`model.safetensors`, best with the `config.json` beside it, or their directory), Roboflow's RF-DETR's, and bare state
dicts of ours. A published name such as `rf-detr-nano` stands for its file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rtdetr_tool.checkpoints.family_weights import FileContents, ForeignFormat, family_of_tensors, weights_of
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.checkpoints.layout import OURS, identify, to_own_names
from rtdetr_tool.checkpoints.metadata import KEY, check_sizes, checked_metadata
from rtdetr_tool.checkpoints.published import weights_path
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families import family_of
from rtdetr_tool.spec.queries import fields_not_in_weights

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
DIRECTORY_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass
class DetectorFile:
    """A detector's weights and what is known about them.

    `meta` has the form of our own metadata (`metadata.py`). For files of others its `spec` holds the fields that the
    file settles, no more; its `classes` are empty, or names without category ids; its `origin` says whose it was.
    """

    source: str
    kind: str
    what: str  # such as "an official RT-DETRv2 checkpoint, averaged weights (EMA)"
    weights: dict[str, Tensor]
    meta: dict[str, Any]
    notes: list[str] = field(default_factory=list)  # what the user should know besides
    format: ForeignFormat | None = None  # of another program

    @property
    def ours(self) -> bool:
        return self.kind == OURS

    def summary(self) -> str:
        """What was found, in a few lines."""
        model, classes = self.meta["spec"]["model"], self.meta["spec"]["dataset"]["num_classes"]
        family = family_of(model.get("arch"))
        weights = weights_of(family)
        lines = [f"{self.source} is {self.what}: {weights.summary(model, classes)}"]
        unseen = [] if self.ours else [name for name in fields_not_in_weights(family.name) if name not in model]
        if unseen:
            names = ", ".join(unseen)
            lines.append(f"It does not say what it was trained with ({names}): the spec or its defaults hold.")
        return "\n".join([*lines, *self.notes])


def read_detector(path: str | Path, given: Mapping[str, Any] | None = None) -> DetectorFile:
    """Read a weights file, a directory of transformers, or weights by their published name.

    Args:
        given: fields of the spec's `model` section that the user gave; they decide where the file leaves a choice.

    Raises:
        CheckpointError: missing, damaged, unsafe, another network, or tensors without a counterpart.
    """
    path = Path(path)
    file = weights_file(path)
    payload = load_checkpoint(file)
    layout = identify(payload, str(path))
    weights = to_own_names(layout, str(path))
    what = f"{layout.what}{', averaged weights (EMA)' if layout.averaged else ''}"
    if layout.kind == OURS:
        meta = checked_metadata(payload[KEY], str(path))
        check_sizes(meta, weights, str(path))
        return DetectorFile(str(path), OURS, what, weights, meta)
    read = DetectorFile(str(path), layout.kind, what, weights, {}, format=layout.format)
    family = layout.family if layout.format is not None else family_of_tensors(weights)
    weights_of(family).describe(read, FileContents(layout, payload, file, path.is_dir()), given or {})
    return read


def is_transformers_directory(path: str | Path) -> bool:
    """Whether this is a directory as transformers' `save_pretrained` writes it."""
    return (Path(path) / CONFIG).is_file()


def weights_file(path: str | Path) -> Path:
    """The file itself, the weights in a directory of transformers, or the file of a published name.

    Raises:
        CheckpointError: a directory without weights, or a published file that cannot be had.
    """
    path = weights_path(path)
    if not path.is_dir():
        return path
    for name in DIRECTORY_WEIGHTS:
        if (path / name).is_file():
            return path / name
    found = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
    raise CheckpointError(
        f"{path} is a directory without {' or '.join(DIRECTORY_WEIGHTS)}, as transformers writes them (it holds "
        f"{found}); give a weights file, or a directory of transformers."
    )
