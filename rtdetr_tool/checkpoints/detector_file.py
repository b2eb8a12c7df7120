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

from rtdetr_tool.catalog import RFDETR_VARIANTS
from rtdetr_tool.checkpoints import official_rtdetr, transformers_config, transformers_rtdetr
from rtdetr_tool.checkpoints.architecture import UNSEEN, architecture_of, describe, points_per_level
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.checkpoints.layout import BARE, OURS, RFDETR, TAO, TRANSFORMERS, Layout, identify, to_own_names
from rtdetr_tool.checkpoints.metadata import KEY, build_metadata, check_sizes, checked_metadata
from rtdetr_tool.checkpoints.published import ACCEPT, check_licence, weights_path
from rtdetr_tool.checkpoints.rfdetr import is_own_rfdetr
from rtdetr_tool.checkpoints.rfdetr_architecture import (
    architecture_of_rfdetr,
    classes_of,
    describe_rfdetr,
    settings_of,
)
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families import family_of
from rtdetr_tool.files import parse_json, read_limited

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
LARGEST_CONFIG = 16 << 20  # bytes
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

    @property
    def ours(self) -> bool:
        return self.kind == OURS

    def summary(self) -> str:
        """What was found, in a few lines."""
        spec = self.meta["spec"]
        if spec["model"].get("arch") == "rfdetr":
            found = describe_rfdetr(spec["model"], spec["dataset"]["num_classes"])
            return "\n".join([f"{self.source} is {self.what}: {found}", *self.notes])
        shown = {name: value for name, value in spec["model"].items() if name in family_of(None).architecture["model"]}
        lines = [f"{self.source} is {self.what}: {describe(shown, spec['dataset']['num_classes'])}"]
        if not self.ours:
            unseen = [name for name in UNSEEN if name not in spec["model"]]
            if unseen:
                lines.append(
                    f"It does not say what it was trained with ({', '.join(unseen)}): the spec or its defaults hold."
                )
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
    config, preprocessor = {}, {}
    if layout.kind == TRANSFORMERS and file.name in DIRECTORY_WEIGHTS:
        config = _read_json(file.parent / CONFIG, required=path.is_dir())
        preprocessor = _read_json(file.parent / PREPROCESSOR)
    read = DetectorFile(str(path), layout.kind, what, weights, {})
    if is_own_rfdetr(weights):
        return _described_rfdetr(read, payload, given or {})
    return _described(read, layout, config, preprocessor, given or {})


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


def _described(
    file: DetectorFile,
    layout: Layout,
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
    given: Mapping[str, Any],
) -> DetectorFile:
    """The file with the metadata that its shapes and the files beside it give."""
    known: dict[str, Any] = {}
    if config:
        known = transformers_config.model_fields(config, f"{file.source} ({CONFIG})")
    if layout.kind == TRANSFORMERS:
        known["pe_order"] = given.get("pe_order", transformers_config.PE_ORDER)
    points = _points(layout)
    model, classes = architecture_of(file.weights, {**given, **known}, file.source, points)
    _check_agreement(known, model, file.source)
    dataset: dict[str, Any] = {"num_classes": classes}
    if preprocessor:
        dataset["augmentation"], file.notes = transformers_config.input_fields(preprocessor)
    names = transformers_config.class_names(config)
    file.meta = build_metadata(
        "", {"model": {**model, **known}, "dataset": dataset},
        [{"index": index, "id": None, "name": name} for index, name in sorted(names.items()) if index < classes],
        "ema" if layout.averaged else "raw",
    )  # fmt: skip
    file.meta["origin"] = {"format": layout.kind, "version": layout.version}
    if layout.kind == TRANSFORMERS and not config:
        file.notes.append(f"There is no {CONFIG} beside it: heads, activations and class names are not known from it.")
    if layout.kind not in (TRANSFORMERS, BARE):
        file.notes.append("It does not say what its classes are called: the annotation file or a classmap does.")
    return file


def _described_rfdetr(file: DetectorFile, payload: Mapping[str, Any], given: Mapping[str, Any]) -> DetectorFile:
    """As `_described`, for an RF-DETR."""
    chosen = given.get("rfdetr") or {}
    known = {**settings_of(payload, file.source), **chosen}
    model, classes = architecture_of_rfdetr(file.weights, known, file.source)
    if file.kind == RFDETR:
        check_licence(file.source, RFDETR_VARIANTS[model["rfdetr"]["variant"]].licence, bool(chosen.get(ACCEPT)))
    named = classes_of(payload, classes)
    file.meta = build_metadata("", {"model": model, "dataset": {"num_classes": classes}}, named)
    file.meta["origin"] = {"format": file.kind, "version": 1}
    if not named:
        file.notes.append("It does not say what its classes are called: the annotation file or a classmap does.")
    return file


def _points(layout: Layout) -> list[int] | None:
    """Sampling points per level where the file tells: RT-DETRv2 keeps a buffer, TAO has always 4."""
    ends = (official_rtdetr.POINT_SHARES, transformers_rtdetr.POINT_SHARES)
    shares = next((tensor for name, tensor in layout.tensors.items() if name.endswith(ends)), None)
    if shares is not None:
        return points_per_level(shares)
    return [4] if layout.kind == TAO else None


def _check_agreement(known: Mapping[str, Any], model: Mapping[str, Any], source: str) -> None:
    """The configuration beside a file must be that file's."""
    wrong = [
        f"{name} is {known[name]} in {CONFIG}, {value} in the tensors"
        for name, value in model.items()
        if name in known and known[name] != value and name != "expansion"
    ]
    if wrong:
        raise CheckpointError(f"{source}: the weights are not those of the configuration: {'; '.join(wrong)}.")


def _read_json(path: Path, required: bool = False) -> dict[str, Any]:
    if not path.is_file():
        if required:
            raise CheckpointError(f"{path} is missing: transformers keeps the architecture there.")
        return {}
    try:
        content = parse_json(read_limited(path, LARGEST_CONFIG))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.")
    return content
