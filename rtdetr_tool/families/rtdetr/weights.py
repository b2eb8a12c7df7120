"""Read weights of an RT-DETR from files of the official repository, transformers and TAO, and those with our names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rtdetr_tool.catalog import BACKBONES
from rtdetr_tool.checkpoints.backbone_names import native_backbone_names
from rtdetr_tool.checkpoints.detector_file import DetectorFile, weights_file
from rtdetr_tool.checkpoints.family_weights import FileContents, ForeignFormat, Recognized
from rtdetr_tool.checkpoints.identify import BARE, TAO, Identified, detector_weights, require_tensors
from rtdetr_tool.checkpoints.io import load_checkpoint
from rtdetr_tool.checkpoints.official_names import POINT_SHARES
from rtdetr_tool.checkpoints.published import log_inherited_license
from rtdetr_tool.checkpoints.renames import split_by_prefix
from rtdetr_tool.checkpoints.timm_weights import from_timm, is_timm, timm_weights
from rtdetr_tool.checkpoints.transformers_files import CONFIG, PE_ORDER
from rtdetr_tool.checkpoints.transformers_metadata import TRANSFORMERS, fill_metadata, read_configs
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rtdetr import official, transformers_config, transformers_names
from rtdetr_tool.families.rtdetr.architecture import architecture_of, describe_model, points_per_level
from rtdetr_tool.families.rtdetr.other_programs import write_official, write_tao
from rtdetr_tool.families.rtdetr.transformers_directory import write_transformers
from rtdetr_tool.spec import ModelSpec
from rtdetr_tool.spec.queries import architecture_fields

__all__ = ["FORMATS", "WRITERS", "describe", "is_complete", "native_names", "read_backbone", "summary"]

OFFICIAL = "official"
_SUFFIXES = {1: "", 2: "v2"}


def _official(tensors: Mapping[str, Tensor]) -> Recognized | None:
    if not official.is_official_rtdetr(tensors):
        return None
    version = 2 if official.is_version_2(tensors) else 1
    return Recognized(f"an official RT-DETR{_SUFFIXES[version]} checkpoint", version)


def _transformers(tensors: Mapping[str, Tensor]) -> Recognized | None:
    if not transformers_names.is_transformers_rtdetr(tensors):
        return None
    version = 2 if any(name.endswith(transformers_names.POINT_SHARES) for name in tensors) else 1
    return Recognized(f"a Hugging Face transformers RT-DETR{_SUFFIXES[version]}", version)


FORMATS = (
    ForeignFormat(TRANSFORMERS, _transformers, transformers_names.from_transformers),
    ForeignFormat(OFFICIAL, _official, official.from_official),
)


WRITERS = {TRANSFORMERS: write_transformers, OFFICIAL: write_official, TAO: write_tao}


def is_complete(weights: Mapping[str, Tensor]) -> bool:
    """Whether these tensors with our names are an RT-DETR."""
    return any(name.startswith("decoder.decoder.layers.") for name in weights) and not official.has_gates(weights)


def native_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace TAO's names by ours, which only differ for some backbones."""
    backbone, neck = split_by_prefix(weights, "backbone.")
    return {**{f"backbone.{name}": tensor for name, tensor in native_backbone_names(backbone).items()}, **neck}


def summary(model: Mapping[str, Any], classes: int) -> str:
    """One line about the architecture, for the log."""
    shown = {name: value for name, value in model.items() if name in architecture_fields("model")}
    return describe_model(shown, classes)


def describe(file: DetectorFile, contents: FileContents, given: Mapping[str, Any]) -> None:
    """Fill in what follows from the shapes and the files next to the weights."""
    identified = contents.identified
    config, preprocessor = read_configs(contents)
    known: dict[str, Any] = {}
    if config:
        known = transformers_config.model_fields(config, f"{file.source} ({CONFIG})")
    if identified.kind == TRANSFORMERS:
        known["pe_order"] = given.get("pe_order", PE_ORDER)
    model, classes = architecture_of(file.weights, {**given, **known}, file.source, _points(identified))
    _check_agreement(known, model, file.source)
    fill_metadata(file, contents, {**model, **known}, classes, config, preprocessor)
    if identified.kind == TRANSFORMERS and not config:
        file.notes.append(f"There is no {CONFIG} next to the file; heads, activations and class names are unknown.")
    if identified.kind not in (TRANSFORMERS, BARE):
        file.notes.append("The file has no class names; using those of the dataset or a classmap.")


def _points(identified: Identified) -> list[int] | None:
    """Sampling points per level if the file determines them: RT-DETRv2 has a buffer, TAO always uses 4."""
    ends = (POINT_SHARES, transformers_names.POINT_SHARES)
    shares = next((tensor for name, tensor in identified.tensors.items() if name.endswith(ends)), None)
    if shares is not None:
        return points_per_level(shares)
    return [4] if identified.kind == TAO else None


def _check_agreement(known: Mapping[str, Any], model: Mapping[str, Any], source: str) -> None:
    """CheckpointError if the configuration next to a file does not match its tensors."""
    wrong = [
        f"{name} is {known[name]} in {CONFIG}, but {value} in the tensors"
        for name, value in model.items()
        if name in known and known[name] != value and name != "expansion"
    ]
    if wrong:
        raise CheckpointError(f"{source}: weights and configuration do not match: {'; '.join(wrong)}.")


def read_backbone(source: str, model: ModelSpec) -> dict[str, Tensor]:
    """Backbone tensors from a file, or from timm: `timm` (its default weights) or `timm/<tag>`.

    The file may be from timm, torchvision, the network's own repository, TAO or the official RT-DETR, or be a complete
    detector of any format (file or directory).
    """
    row = BACKBONES.get(model.backbone)
    if row is not None:
        log_inherited_license(row.name, row.license)
    if is_timm(source):
        return from_timm(timm_weights(source, model.backbone))
    return backbone_weights(load_checkpoint(weights_file(source)), source)


def backbone_weights(payload: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """A backbone's tensors with our names, from a file of any format that `read_backbone` supports."""
    tensors = require_tensors(payload, source)
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if transformers_names.is_transformers_rtdetr(plain) or official.is_official_rtdetr(plain):
        return split_by_prefix(detector_weights(payload, source), "backbone.")[0]
    in_backbone = [name for name in tensors if ".backbone." in f".{name}"]
    if in_backbone and any("decoder." in name for name in tensors):  # a complete detector
        return _rename_backbone({name.split("backbone.", 1)[1]: tensors[name] for name in in_backbone}, source)
    cleaned: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for prefix in ("module.", "model.model.backbone.", "model.backbone.", "model.encoder.", "backbone.", "model."):
            name = name.removeprefix(prefix)
        cleaned[name.removeprefix("ema_")] = tensor
    return _rename_backbone(cleaned, source)


def _rename_backbone(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    try:
        if official.is_official_backbone(weights):
            return official.from_official_backbone(weights)
        return native_backbone_names(weights)
    except CheckpointError as error:
        raise CheckpointError(f"{source} is a backbone that cannot be converted: {error}.") from error
