"""Keyword arguments of the Python API and the fields of the spec that they set."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from rtdetr_tool.errors import UserError
from rtdetr_tool.families import Family, all_families
from rtdetr_tool.spec.schema import section_type, walk_fields

Settings = dict[str, Any]  # dotted name of a field -> value
Rule = str | Callable[[Any], Settings]


def _multi_scale(on: Any) -> Settings:
    return {} if on else {"dataset.augmentation.multi_scales": []}


def _device(device: Any) -> Settings:
    kind, _, index = str(device).partition(":")
    if kind == "auto":
        return {"train.accelerator": "auto"}
    if kind == "cpu" and not index:
        return {"train.accelerator": "cpu"}
    if kind in ("cuda", "gpu") and (not index or index.isdigit()):
        return {"train.accelerator": "gpu", "train.gpu_ids": [int(index or 0)]}
    raise UserError(f"device: {device!r} is invalid; expected 'auto', 'cpu', 'cuda' or 'cuda:N'")


def _lr_drop(epoch: Any) -> Settings:
    return {"train.optim.lr_scheduler": "MultiStep", "train.optim.lr_steps": [epoch]}


def _lr_scheduler(name: Any) -> Settings:
    return {"train.optim.lr_scheduler": {"cosine": "Cosine", "step": "MultiStep"}.get(name, name)}


# Names that users of RF-DETR know -> field, or what gives fields.
TRAIN: dict[str, Rule] = {
    "epochs": "train.num_epochs",
    "batch_size": "dataset.batch_size",
    "lr": "train.optim.lr",
    "lr_encoder": "train.optim.lr_backbone",
    "weight_decay": "train.optim.weight_decay",
    "lr_drop": _lr_drop,
    "lr_scheduler": _lr_scheduler,
    "lr_vit_layer_decay": "train.optim.lr_layer_decay",
    "clip_max_norm": "train.clip_grad_norm",
    "output_dir": "train.results_dir",
    "num_workers": "dataset.workers",
    "use_ema": "train.enable_ema",
    "ema_decay": "train.ema.decay",
    "ema_tau": "train.ema.tau",
    "early_stopping": "train.early_stopping.enabled",
    "early_stopping_patience": "train.early_stopping.patience",
    "early_stopping_min_delta": "train.early_stopping.min_delta",
    "eval_interval": "train.validation_interval",
    "eval_max_dets": "evaluate.max_dets",
    "multi_scale": _multi_scale,
    "gradient_checkpointing": "train.activation_checkpoint",
    "device": _device,
    "devices": "train.num_gpus",
    "strategy": "train.distributed_strategy",
    "wandb": "wandb.enable",
    "mlflow": "mlflow.enable",
    "project": lambda name: {"wandb.project": name, "mlflow.experiment": name},
    "run": lambda name: {"wandb.name": name, "mlflow.run_name": name},
}
# Keywords that users of RF-DETR know and that have no field -> what there is instead.
TRAIN_ELSEWHERE = {
    "start_epoch": "resume=True goes on in the epoch in which a run ended",
    "do_benchmark": "it is not measured while training; `rtdetr evaluate` says images per second",
    "class_names": "they are those of the data",
    "run_test": "evaluate('test') scores the test split afterwards",
}
EXPORT_ELSEWHERE = {
    "simplify": "graphs are always simplified",
    "force": "overwrite=True replaces a file",
    "infer_dir": "pictures of dataset.infer_data_sources are compared where there are some",
    "patch_size": "it is the model's",
}
# Of `export`.
EXPORT: dict[str, Rule] = {
    "quantization": lambda kind: {"export.tflite.data_type": str(kind or "FP32").upper()},
    "max_images": "export.tflite.calibration_images",
}
_TRAIN_SECTIONS = ("train", "dataset")


def train_settings(keywords: Mapping[str, Any]) -> Settings:
    """What keywords of `train` say: names of `TRAIN`, of fields of `train` and `dataset`, or dotted names."""
    return settings(keywords, {**leaves(*_TRAIN_SECTIONS), **TRAIN}, "train", {**_of_the_model(), **TRAIN_ELSEWHERE})


def data_settings(keywords: Mapping[str, Any]) -> Settings:
    """What keywords of `evaluate` say: `max_dets`, fields of `dataset`, and names in `TRAIN` that stand for these."""
    known = {name: rule for name, rule in TRAIN.items() if str(rule).startswith(("dataset.", "evaluate."))}
    return settings(keywords, {**leaves("dataset"), **known, "max_dets": "evaluate.max_dets"}, "evaluate")


def export_settings(keywords: Mapping[str, Any]) -> Settings:
    """What keywords of `export` say: fields of `export`, or names in `EXPORT`."""
    return settings(keywords, {**leaves("export"), **EXPORT}, "export", EXPORT_ELSEWHERE)


def model_settings(keywords: Mapping[str, Any], family: Family, where: str) -> Settings:
    """What keywords of a constructor say: names of the family's fields of `model`, or dotted names."""
    return settings(keywords, leaves(*_sections(family)), where)


def settings(
    keywords: Mapping[str, Any], known: Mapping[str, Rule], where: str, elsewhere: Mapping[str, str] | None = None
) -> Settings:
    """The fields that keywords set; `elsewhere` says of names that are not known what there is instead.

    Raises:
        UserError: for names that are not known, with the nearest ones, and for a field that is set twice.
    """
    found: Settings = {}
    problems = []
    for name, value in keywords.items():
        rule = known.get(name, name if "." in name else None)
        if rule is None:
            problems.append(f"{where} has no keyword {name}{_hint(name, known, elsewhere or {})}")
            continue
        for field, content in ({rule: value} if isinstance(rule, str) else rule(value)).items():
            if field in found:
                problems.append(f"{where}: {field} is given twice, the second time as {name}")
            found[field] = plain(content)
    if problems:
        raise UserError("\n".join(problems))
    return found


def _hint(name: str, known: Mapping[str, Rule], elsewhere: Mapping[str, str]) -> str:
    if name in elsewhere:
        return f": {elsewhere[name]}"
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(sorted(known))}"


def _of_the_model() -> dict[str, str]:
    fields = leaves(*(section for family in all_families() for section in _sections(family)))
    return dict.fromkeys(fields, "it belongs to the model and is given when the detector is made")


def _sections(family: Family) -> tuple[str, ...]:
    """Where the family's fields are, its own before those that families share."""
    return ("model",) if family.section is None else (f"model.{family.section}", "model")


def plain(value: Any) -> Any:
    """Paths as texts, tuples as lists, also inside."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def applied(data: Mapping[str, Any], changes: Settings) -> dict[str, Any]:
    """Nested plain data with fields by dotted name set; the given data stay as they are."""
    result = _copied(data)
    for name, value in changes.items():
        *path, leaf = name.split(".")
        place = result
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = value
    return result


def _copied(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in data.items()}


@cache
def leaves(*sections: str) -> dict[str, str]:
    """Last part of a field's name -> dotted name, for the fields in the sections; the first section's wins."""
    found: dict[str, str] = {}
    for section in sections:
        names = list(_fields_below(section))
        direct = [name for name in names if name.count(".") == section.count(".") + 1]
        for name in (*direct, *names):  # `train.seed` before a seed further down
            found.setdefault(name.rpartition(".")[2], name)
    return found


def _fields_below(section: str) -> Iterator[str]:
    for name, _, hint in walk_fields():
        if name.startswith(f"{section}.") and not section_type(hint) and "[]" not in name:
            yield name
