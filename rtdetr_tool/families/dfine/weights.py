"""Read weights of a D-FINE from files of the official repository and transformers, and write transformers' files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from rtdetr_tool.catalog import DFINE_VARIANTS
from rtdetr_tool.checkpoints.detector_file import DetectorFile, read_detector, weights_file
from rtdetr_tool.checkpoints.family_weights import FileContents, ForeignFormat, Recognized
from rtdetr_tool.checkpoints.identify import BARE, state_dict_of
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.checkpoints.official_names import POINT_SHARES
from rtdetr_tool.checkpoints.renames import split_by_prefix
from rtdetr_tool.checkpoints.sampling_points import points_from_shares
from rtdetr_tool.checkpoints.timm_weights import from_timm, is_timm, tagged
from rtdetr_tool.checkpoints.transformers_files import (
    CONFIG,
    PE_ORDER,
    PREPROCESSOR,
    counts_batches_of_backbone,
    position_notes,
    preprocessor_for,
    write_directory,
)
from rtdetr_tool.checkpoints.transformers_metadata import TRANSFORMERS, fill_metadata, read_configs
from rtdetr_tool.checkpoints.transformers_names import without_unused_layers
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.dfine import official, transformers_config, transformers_names
from rtdetr_tool.families.dfine.architecture import architecture_of_dfine, describe_dfine
from rtdetr_tool.families.dfine.model.distribution import UP
from rtdetr_tool.families.dfine.spec import DfineSpec, resolve_dfine
from rtdetr_tool.spec import ModelSpec, spec_to_dict

__all__ = ["FORMATS", "WRITERS", "describe", "is_complete", "native_names", "read_backbone", "summary"]

OFFICIAL = "official_dfine"
_LAYERS = (
    "decoder.decoder.layers.",
    "decoder.decoder.lqe_layers.",
    "decoder.dec_score_head.",
    "decoder.dec_bbox_head.",
)


def _official(tensors: Mapping[str, Tensor]) -> Recognized | None:
    return Recognized("an official D-FINE checkpoint") if official.is_official_dfine(tensors) else None


def _transformers(tensors: Mapping[str, Tensor]) -> Recognized | None:
    known = transformers_names.is_transformers_dfine(tensors)
    return Recognized("a Hugging Face transformers D-FINE") if known else None


def write_transformers(target: Path, weights: Mapping[str, Tensor], meta: Mapping[str, Any]) -> list[str]:
    """Write a directory of transformers; returns messages about parts that cannot be converted."""
    model, dataset = meta["spec"]["model"], meta["spec"]["dataset"]
    fields = resolve_dfine(DfineSpec(**model["dfine"]))
    kept, layers, notes = without_unused_layers(weights, fields.dec_layers, fields.eval_idx, _LAYERS, "model.dfine")
    if layers < fields.dec_layers:
        fields = replace(fields, dec_layers=layers, eval_idx=-1, layer_scale=1.0)
    values = spec_to_dict(fields)
    names = {entry["index"]: entry["name"] for entry in meta["classes"]}
    config = transformers_config.config_for(values, model, names, dataset["num_classes"])
    preprocessor, more = preprocessor_for(dataset["augmentation"])
    notes += position_notes(fields.pe_order, "model.dfine.pe_order", dataset["augmentation"])
    if transformers_config.freezes_norms(values):
        kept = {name: tensor for name, tensor in kept.items() if not counts_batches_of_backbone(name)}
    tensors = transformers_names.to_transformers_file(kept, fields.num_points, fields.reg_scale)
    write_directory(target, tensors, {CONFIG: config, PREPROCESSOR: preprocessor})
    return [*notes, *more]


FORMATS = (
    ForeignFormat(TRANSFORMERS, _transformers, transformers_names.from_transformers),
    ForeignFormat(OFFICIAL, _official, official.from_official),
)
WRITERS = {TRANSFORMERS: write_transformers}


def is_complete(weights: Mapping[str, Tensor]) -> bool:
    """Whether these tensors with our names are a D-FINE."""
    return official.FIRST_BOX in weights


def native_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same names, because TAO has no D-FINE."""
    return dict(weights)


def summary(model: Mapping[str, Any], classes: int) -> str:
    """One line about the architecture, for the log."""
    return describe_dfine(model, classes)


def describe(file: DetectorFile, contents: FileContents, given: Mapping[str, Any]) -> None:
    """Fill in what follows from the shapes, the constants in the file and the files next to the weights."""
    identified = contents.identified
    config, preprocessor = read_configs(contents)
    fields: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    if config:
        fields, shared = transformers_config.model_fields(config, f"{file.source} ({CONFIG})")
    fields |= _constants(identified.tensors, file.source)
    user_fields = given.get("dfine") or {}
    if identified.kind == TRANSFORMERS:
        fields["pe_order"] = user_fields.get("pe_order", PE_ORDER)
    model, classes = architecture_of_dfine(file.weights, {**user_fields, **fields}, file.source)
    defaults = DfineSpec()
    model["dfine"] |= {
        name: value
        for name, value in fields.items()
        if name not in ("num_points", "reg_scale") and value != getattr(defaults, name)
    }
    fill_metadata(file, contents, {**model, **shared}, classes, config, preprocessor)
    if not file.meta["classes"] and identified.kind != BARE:
        file.notes.append("The file has no class names; using those of the dataset or a classmap.")


def _constants(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Fields of `model.dfine` that a file stores as tensors."""
    fields: dict[str, Any] = {}
    ends = (POINT_SHARES, transformers_names.POINT_SHARES)
    if (shares := next((tensor for name, tensor in tensors.items() if name.endswith(ends)), None)) is not None:
        fields["num_points"] = points_from_shares(shares)
    for name in (official.REG_SCALE, transformers_names.REG_SCALE):
        if name in tensors:
            fields["reg_scale"] = round(float(tensors[name].flatten()[0]), 6)
    for name in (official.UP, transformers_names.UP):
        if name in tensors and abs(float(tensors[name].flatten()[0]) - UP) > 1e-6:
            raise CheckpointError(f"{source} has {name} {float(tensors[name].flatten()[0]):g}; expected {UP:g}.")
    return fields


def read_backbone(source: str, model: ModelSpec) -> dict[str, Tensor]:
    """The HGNetV2's weights with our names, from a file or from timm (`timm`, `timm/<tag>`).

    The file may be from timm or the official repository, or be a complete D-FINE of any format.
    """
    if is_timm(source):
        return from_timm(
            tagged(DFINE_VARIANTS[model.dfine.variant].backbone, source.removeprefix("timm").removeprefix("/"))
        )
    tensors = state_dict_of(load_checkpoint(weights_file(source)))
    if any("pre_bbox_head." in name for name in tensors):
        return split_by_prefix(read_detector(source).weights, "backbone.")[0]
    plain = {name.removeprefix("module.").removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    if "stem.stem1.conv.weight" not in plain:
        raise CheckpointError(
            f"model.pretrained_backbone_path: {source} is not an HGNetV2; expected a file of timm or D-FINE"
        )
    return plain
