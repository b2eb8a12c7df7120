"""The configs of Roboflow's package, `TrainConfig` and a `ModelConfig` per variant, and the spec they stand for."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any, ClassVar

from rtdetr_tool.api.keywords import applied, model_settings, train_settings
from rtdetr_tool.catalog import RFDETR_VARIANTS
from rtdetr_tool.errors import UserError
from rtdetr_tool.families import Family, family_named
from rtdetr_tool.families.keywords import Keyword, Settings
from rtdetr_tool.families.rfdetr.keywords import MODEL_TABLE, TRAIN_TABLE
from rtdetr_tool.families.rfdetr.resolved import resolve_rfdetr
from rtdetr_tool.spec import ExperimentSpec, spec_from_dict

_FAMILY: Family = family_named("rfdetr")


class _Config:
    """Named values with the defaults of a table; `given` are those that the user passed."""

    def __init__(self, table: dict[str, Keyword], given: dict[str, Any]) -> None:
        unknown = sorted(set(given) - set(table))
        if unknown:
            raise UserError(
                f"{type(self).__name__} has no field {', '.join(unknown)}; its fields are in docs/rfdetr.md"
            )
        self.given = given
        for name, row in table.items():
            setattr(self, name, given.get(name, None if row.default is ... else row.default))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.given.items())})"


class TrainConfig(_Config):
    """The fields of Roboflow's `TrainConfig` (docs/rfdetr.md)."""

    def __init__(self, **fields: Any) -> None:
        if "dataset_dir" not in fields:
            raise UserError("TrainConfig: dataset_dir is required, but not set")
        super().__init__(dict(TRAIN_TABLE), fields)
        self.settings: Settings = train_settings(fields, _FAMILY)  # of the spec


class ModelConfig(_Config):
    """The fields of Roboflow's `ModelConfig` (docs/rfdetr.md); a subclass per variant."""

    variant: ClassVar[str]

    def __init__(self, **fields: Any) -> None:
        super().__init__(dict(MODEL_TABLE), fields)
        row = RFDETR_VARIANTS[self.variant]
        for name in row._fields:
            if name in MODEL_TABLE and name not in fields:
                value = getattr(row, name)
                setattr(self, name, list(value) if isinstance(value, tuple) else value)
        if "pretrain_weights" not in fields:
            self.pretrain_weights: Any = row.weights
        self.settings: Settings = {
            "model.arch": _FAMILY.name,
            "model.rfdetr.variant": self.variant,
            **model_settings(fields, _FAMILY, type(self).__name__),
        }


def _config_of(variant: str) -> type[ModelConfig]:
    title = "".join(part[:1].upper() + part[1:] for part in variant.split("_")).replace("xlarge", "XLarge")
    return type(f"RFDETR{title.replace('Xlarge', 'XLarge')}Config", (ModelConfig,), {"variant": variant})


CONFIGS: dict[str, type[ModelConfig]] = {
    kind.__name__: kind for kind in (_config_of(variant) for variant in RFDETR_VARIANTS)
}
CONFIGS["RFDETRLargeDeprecatedConfig"] = CONFIGS["RFDETRLarge2025Config"]  # its name in the package


def config_of(spec: ExperimentSpec, changes: dict[str, Any]) -> ModelConfig:
    """The `ModelConfig` of a detector, with other values for some fields."""
    kind = next(kind for kind in CONFIGS.values() if kind.variant == spec.model.rfdetr.variant)
    published, full = RFDETR_VARIANTS[kind.variant]._asdict(), asdict(resolve_rfdetr(spec.model.rfdetr))
    fields = {
        name: value
        for name in MODEL_TABLE
        if (value := full.get(name)) is not None and value != _as_list(published.get(name, ...))
    }
    rows = spec.dataset.num_classes
    known: dict[str, Any] = {"num_select": spec.model.num_select, "num_channels": spec.model.num_channels}
    known |= {} if rows is None else {"num_classes": rows - 1}
    return kind(**{**fields, **known, **changes})


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def spec_of(model_config: ModelConfig, train_config: TrainConfig) -> ExperimentSpec:
    """The spec that both configs stand for."""
    settings = {"train.results_dir": "output", **model_config.settings, **train_config.settings}
    if "num_classes" in model_config.given:
        settings["dataset.num_classes"] = _FAMILY.class_rows(model_config.given["num_classes"])
    if model_config.pretrain_weights is not None:
        settings["train.pretrained_model_path"] = os.fspath(model_config.pretrain_weights)
    return spec_from_dict(applied({}, settings), "train")
