"""Write a detector as a directory of the Hugging Face Hub, with a model card, and upload it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rtdetr_tool.catalog import INHERITED_LICENSES
from rtdetr_tool.checkpoints.family_weights import writer_of
from rtdetr_tool.checkpoints.io import save_detector
from rtdetr_tool.checkpoints.metadata import build_metadata, without_paths
from rtdetr_tool.checkpoints.transformers_files import WEIGHTS
from rtdetr_tool.errors import RtdetrError, UserError
from rtdetr_tool.files import write_atomically
from rtdetr_tool.formats.opening import OpenedDetector
from rtdetr_tool.messages import first_line
from rtdetr_tool.redaction import mask_secrets, without_secrets
from rtdetr_tool.spec import ExperimentSpec, spec_to_dict
from rtdetr_tool.spec.queries import path_fields
from rtdetr_tool.version import package_version
from rtdetr_tool.workflows.convert import RTDETR
from rtdetr_tool.workflows.model_card import LAYOUTS, Card

logger = logging.getLogger(__name__)

CARD, SPEC = "README.md", "spec.yaml"
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_SOURCES = "_data_sources"


def check_repo_id(repo_id: str) -> str:
    """The id itself; `UserError` if the Hub does not accept it."""
    if not _REPO_ID.fullmatch(repo_id):
        raise UserError(f"{repo_id} is not an id on the Hugging Face Hub; expected owner/name")
    return repo_id


def write_directory(
    opened: OpenedDetector,
    folder: Path,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    layout: str = RTDETR,
    overwrite: bool = False,
) -> Path:
    """Write weights, model card and spec without paths and secrets into `folder`.

    Args:
        repo_id: the id under which others open it, for the card; None = the name of the folder.
        license: an identifier of the Hub such as `apache-2.0`; None = not stated, or that of the published weights if
            it restricts their use. Checkpoints do not record where their first weights came from, so this also
            applies to a model of that architecture that was trained from scratch.
        layout: `rtdetr` (all metadata) or `transformers` (opened by transformers as well).

    Raises:
        UserError: the folder is not empty, or the layout is unknown.
        CheckpointError: transformers does not support the detector.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout: {layout!r} is invalid; expected one of {', '.join(LAYOUTS)}")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not overwrite):
        raise UserError(f"{folder} exists and is not empty; choose another folder, or overwrite it")
    spec, detector = opened.spec, opened.detector
    public = published_spec(spec)
    classes = opened.class_map.to_list() if opened.class_map else list(opened.meta.get("classes", ()))
    known = {name: opened.meta[name] for name in ("weights", "metrics") if name in opened.meta}
    meta = build_metadata(package_version(), public, classes, **known)
    if layout == RTDETR:
        save_detector(detector.state_dict(), meta, folder / WEIGHTS)
    else:
        origin = {"origin": opened.meta["origin"]} if "origin" in opened.meta else {}
        for note in writer_of(spec.model.family, layout)(folder, detector.state_dict(), {**meta, **origin}):
            logger.warning("%s", note)
    height, width = spec.dataset.augmentation.eval_spatial_size
    card = Card(
        repo_id=repo_id or folder.name,
        kind=spec.model.kind.replace("/", "-"),
        parameters=sum(parameter.numel() for parameter in detector.parameters()),
        size=(height, width),
        classes=_names(classes, spec.dataset.num_classes or 0),
        metrics=meta["metrics"],
        spec=public,
        license=license or _inherited_license(spec),
        layout=layout,
        version=package_version(),
        averaged=meta["weights"] == "ema",
    )
    write_atomically(folder / SPEC, yaml.safe_dump(public, sort_keys=False, allow_unicode=True))
    write_atomically(folder / CARD, card.text())
    if card.license is None:
        logger.warning("The model card states no license; give one, such as apache-2.0")
    return folder


def upload(folder: Path, repo_id: str, *, private: bool = False, message: str = "", token: str | None = None) -> str:
    """Upload a directory to the Hub, creating the repository if there is none; returns its address.

    Without a token, that of `hf auth login` or `HF_TOKEN` is used. `HF_ENDPOINT` selects another Hub.

    Raises:
        UserError: the Hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        url = api.create_repo(check_repo_id(repo_id), private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message or "Upload a detector")
    except RtdetrError:
        raise
    except Exception as error:  # the library's errors have no common base class
        raise UserError(
            f"{repo_id} cannot be uploaded to the Hugging Face Hub: {mask_secrets(first_line(error))}. Check the "
            "network, and that you are logged in (hf auth login, or HF_TOKEN) and may write to it"
        ) from error
    return str(url)


def published_spec(spec: ExperimentSpec) -> dict[str, Any]:
    """The model, preprocessing and recipe of a spec, without paths, data sources and secrets."""
    data = without_secrets(spec_to_dict(spec))
    data["model"] = without_paths(data["model"])
    kept = {"model": data["model"]}
    for section in ("dataset", "train"):
        paths = path_fields(section)
        kept[section] = {
            name: _without_paths(value, f"{section}.{name}", paths)
            for name, value in data[section].items()
            if f"{section}.{name}" not in paths and not name.endswith(_SOURCES)
        }
    return kept


def _without_paths(value: Any, name: str, paths: tuple[str, ...]) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: item for key, item in value.items() if f"{name}.{key}" not in paths}


def _names(classes: Sequence[Mapping[str, Any]], count: int) -> list[str | None]:
    names = {entry["index"]: entry["name"] for entry in classes}
    return [names.get(index) for index in range(count)]


def _inherited_license(spec: ExperimentSpec) -> str | None:
    """The license of the published weights of this model, if it also applies to what is trained from them."""
    license = spec.model.family.published_license(spec.model)
    return license if license in INHERITED_LICENSES else None
