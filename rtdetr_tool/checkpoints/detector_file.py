"""Read a detector from any supported file: its weights under our names, its architecture, classes and settings.

Supported are our own checkpoints and bare state dicts, and files of NVIDIA TAO, the official RT-DETR (version 1 and 2),
Roboflow's RF-DETR and Hugging Face transformers (a `model.safetensors`, preferably with `config.json` next to it, or
the directory). A published name such as `rf-detr-nano` works like the path of its file.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rtdetr_tool.checkpoints.download import is_url, public_url
from rtdetr_tool.checkpoints.family_weights import FileContents, ForeignFormat, family_of_tensors, weights_of
from rtdetr_tool.checkpoints.identify import OURS, identify, with_native_names
from rtdetr_tool.checkpoints.input_channels import RGB, adapted_from_rgb, image_channels, input_weight
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.checkpoints.metadata import KEY, check_sizes, checked_metadata, section_of
from rtdetr_tool.checkpoints.published import weights_path
from rtdetr_tool.checkpoints.transformers_files import CONFIG
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families import family_of
from rtdetr_tool.messages import first_of
from rtdetr_tool.spec.queries import fields_not_in_weights

logger = logging.getLogger(__name__)

DIRECTORY_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass
class DetectorFile:
    """A detector's weights and what is known about them.

    `meta` has the form of our metadata (`metadata.py`). For a file of another program, its `spec` only has the fields
    that the file determines, its `classes` are empty or names without category ids, and its `origin` is the format of
    the file.
    """

    source: str
    kind: str
    what: str  # such as "an official RT-DETRv2 checkpoint, averaged weights (EMA)"
    weights: dict[str, Tensor]
    meta: dict[str, Any]
    notes: list[str] = field(default_factory=list)  # more to tell the user
    format: ForeignFormat | None = None  # of another program

    @property
    def ours(self) -> bool:
        return self.kind == OURS

    def summary(self) -> str:
        """A few lines about the file, for the log."""
        model, classes = self.meta["spec"]["model"], self.meta["spec"]["dataset"]["num_classes"]
        family = family_of(model.get("arch"))
        weights = weights_of(family)
        lines = [f"{self.source} is {self.what}: {weights.summary(model, classes)}"]
        unknown = [] if self.ours else [name for name in fields_not_in_weights(family.name) if name not in model]
        if unknown:
            names = ", ".join(unknown)
            lines.append(f"The file does not store {names}; using the spec's values or their defaults.")
        return "\n".join([*lines, *self.notes])


def read_detector(path: str | Path, given: Mapping[str, Any] | None = None) -> DetectorFile:
    """Read a weights file, a directory of Hugging Face transformers, or weights by their published name or URL.

    Args:
        given: fields of the spec's `model` section that the user set; they decide what the file leaves open.

    Raises:
        CheckpointError: missing, corrupted or unsafe file, another network, or tensors without a counterpart.
    """
    place, source = weights_path(path, given), public_url(str(path)) if is_url(str(path)) else str(path)
    file = weights_file(place)
    payload = load_checkpoint(file)
    identified = identify(payload, source)
    weights = with_native_names(identified, source)
    what = f"{identified.what}{', averaged weights (EMA)' if identified.averaged else ''}"
    if identified.kind == OURS:
        meta = checked_metadata(payload[KEY], source)
        check_sizes(meta, weights, source)
        return DetectorFile(source, OURS, what, weights, meta)
    read = DetectorFile(source, identified.kind, what, weights, {}, format=identified.format)
    family = identified.family if identified.format is not None else family_of_tensors(weights)
    weights_of(family).describe(read, FileContents(identified, payload, file, place.is_dir()), given or {})
    if (channels := image_channels(weights)) not in (None, RGB):
        read.meta["spec"]["model"]["num_channels"] = channels
    return read


def adapt_file(file: DetectorFile, channels: Any) -> None:
    """Adapt weights for RGB images to images with another number of channels, if one is given."""
    name = input_weight(file.weights)
    known = section_of(file.meta, "spec.model").get("num_channels", RGB)
    if not isinstance(channels, int) or channels < 1 or name is None or not channels != known == RGB:
        return
    if image_channels(file.weights) != RGB:
        return  # loading the weights explains the contradiction
    file.weights[name] = adapted_from_rgb(file.weights[name], channels)
    spec = section_of(file.meta, "spec")
    file.meta["spec"] = {**spec, "model": {**section_of(spec, "model"), "num_channels": channels}}
    logger.info("Adapted %s of %s from %d to %d channels", name, file.source, RGB, channels)


def is_model_directory(path: str | Path) -> bool:
    """Whether this is a directory written by `save_pretrained` of transformers or of this package."""
    return any((Path(path) / name).is_file() for name in (CONFIG, *DIRECTORY_WEIGHTS))


def weights_file(path: str | Path) -> Path:
    """The path of the weights: the file itself, the one in a directory of transformers, or that of a published name.

    Raises:
        CheckpointError: a directory without weights, or a published file that cannot be downloaded.
    """
    path = weights_path(path)
    if not path.is_dir():
        return path
    for name in DIRECTORY_WEIGHTS:
        if (path / name).is_file():
            return path / name
    content = first_of(sorted(file.name for file in path.iterdir()), 8) or "nothing"
    raise CheckpointError(
        f"{path} is a directory with {content}; expected a weights file, or a directory of Hugging Face transformers "
        f"with {' or '.join(DIRECTORY_WEIGHTS)}."
    )
