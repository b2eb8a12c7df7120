"""Checks of the target of `convert`, and the metadata of the file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rtdetr_tool.errors import CheckpointError, MachineError, UserError
from rtdetr_tool.version import package_version

logger = logging.getLogger(__name__)

RTDETR, TRANSFORMERS = "rtdetr", "transformers"
SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
_PICKLED = (".pth", ".pt", ".ckpt")
# Layout -> suffixes of its files; a layout without suffixes is a directory.
LAYOUTS: dict[str, tuple[str, ...]] = {
    RTDETR: SUFFIXES,
    TRANSFORMERS: (),
    "tao": _PICKLED,
    "official": _PICKLED,
    "rfdetr": _PICKLED,
}
OTHER_NAMES = {"hf": TRANSFORMERS}  # of layouts


def check_target(target: Path, layout: str | None, force: bool) -> str:
    """The layout to write; `UserError` if the name of the target does not match it or the target exists."""
    is_file = target.suffix.lower() in SUFFIXES
    layout = OTHER_NAMES.get(layout or "", layout) or (RTDETR if is_file else TRANSFORMERS)
    suffixes = LAYOUTS[layout]
    if suffixes and target.suffix.lower() not in suffixes:
        raise UserError(f"{target} is invalid for --to {layout}; expected a file that ends in {', '.join(suffixes)}")
    if not suffixes and (is_file or target.is_file()):
        raise UserError(f"{target} is invalid for --to {layout}; expected a directory")
    if suffixes and target.is_dir():
        raise UserError(f"{target} is a directory; expected a file")
    taken = target.exists() if suffixes else target.is_dir() and any(target.iterdir())
    if taken and not force:
        raise UserError(f"{target} exists{'' if is_file else ' and is not empty'}; use --force to overwrite it")
    return layout


def write_weights(opened: Any, meta: Mapping[str, Any], target: Path, layout: str) -> list[str]:
    """Write the weights in a program's layout; returns what its users must know."""
    from rtdetr_tool.checkpoints.family_weights import writer_of
    from rtdetr_tool.checkpoints.io import save_detector

    if layout != RTDETR and (channels := opened.detector.num_channels) != 3:
        raise CheckpointError(
            f"{target} cannot be written for {layout}: model.num_channels is {channels}, but its files "
            "are opened as RGB models. Write it as a file of this tool (--to rtdetr)"
        )
    weights = opened.detector.state_dict()
    notes: list[str] = []
    try:
        if layout == RTDETR:
            save_detector(weights, meta, target)
        else:
            notes = writer_of(opened.spec.model.family, layout)(target, weights, meta)
    except Exception as error:  # torch and safetensors raise their own types if the disk is full
        check_room(target, weights)
        if isinstance(error, OSError):
            raise UserError(f"{target} cannot be written: {error.strerror or error}") from None
        raise
    outside = opened.spec.model.family.outside_weights(opened.spec.model)
    if outside is not None:
        notes.append(
            f"{target} does not contain {outside.what}: model.{outside.field} must name its file (a TAO checkpoint "
            "that contains it works too)"
        )
    return notes


def check_room(target: Path, weights: Mapping[str, Any]) -> None:
    """`MachineError` if the weights do not fit on the disk of `target`."""
    import shutil

    needed = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    folder = next(parent for parent in target.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise MachineError(
            f"{target} cannot be written, because the disk is full: {needed / 1e6:.1f} MB are needed, but "
            f"{free / 1e6:.1f} MB are free in {folder}."
        )


def metadata_of(opened: Any, classmap: str | None) -> dict[str, Any]:
    """Our metadata for the file: the resolved spec, and the classes of the source or of the classmap."""
    from rtdetr_tool.checkpoints.metadata import build_metadata
    from rtdetr_tool.spec import spec_to_dict

    count = opened.spec.dataset.num_classes
    classes = opened.meta["classes"]
    if classmap is not None:
        free_rows = opened.spec.model.family.class_rows(count) - count
        classes = named_classes(classmap, classes, count, free_rows)
    known = {name: opened.meta[name] for name in ("weights", "metrics") if name in opened.meta}
    meta = build_metadata(package_version(), spec_to_dict(opened.spec), classes, **known)
    if "origin" in opened.meta:
        meta["origin"] = dict(opened.meta["origin"])
    return meta


def named_classes(
    classmap: str, classes: list[Mapping[str, Any]], rows: int, free_rows: int = 0
) -> list[dict[str, Any]]:
    """The classes with the names of a classmap, by class row, or in the order of the checkpoint's classes.

    The last `free_rows` rows, such as a background row, may have no name.
    """
    from rtdetr_tool.data.folder import read_classmap

    names = read_classmap(classmap)
    ids = {entry["index"]: entry["id"] for entry in classes}
    if classes and len(names) == len(classes):
        return [{**entry, "name": name} for entry, name in zip(classes, names, strict=True)]
    if len(names) in (rows, rows - free_rows):
        return [{"index": index, "id": ids.get(index), "name": name} for index, name in enumerate(names)]
    expected = f"{rows} classes" if free_rows == 0 else f"{rows} class rows, the last of them without a class"
    raise UserError(f"{classmap} has {len(names)} names; expected one per class, but the detector has {expected}")
