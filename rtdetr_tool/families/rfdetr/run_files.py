"""Write the checkpoints of the Python classes so that Roboflow's package opens them, and their settings as JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rtdetr_tool.families.rfdetr.configs import CONFIGS, config_of
from rtdetr_tool.families.rfdetr.keywords import MODEL_TABLE, TRAIN_TABLE
from rtdetr_tool.families.rfdetr.names import to_rfdetr
from rtdetr_tool.families.rfdetr.package_file import in_package, index_names
from rtdetr_tool.files import write_atomically
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.redaction import without_secrets
from rtdetr_tool.spec import ExperimentSpec, spec_to_dict

logger = logging.getLogger(__name__)

# Role of a checkpoint -> its name in Roboflow's package.
FILE_NAMES = {
    "latest": "last.ckpt",
    "best": "checkpoint_best_total.pth",
    "raw": "checkpoint_best_regular.pth",
    "ema": "checkpoint_best_ema.pth",
}
SETTINGS = "training_config.json"


class RunFiles:
    """The `CheckpointFormat` of Roboflow's package.

    The tensors of a checkpoint have both our names and those of the package, but are stored once.

    Args:
        keywords: what the user gave to `train()` or `TrainConfig`.
    """

    names: Mapping[str, str] = FILE_NAMES

    def __init__(self, keywords: Mapping[str, Any]) -> None:
        self.keywords = {name: value for name, value in keywords.items() if name in TRAIN_TABLE}

    def start(self, spec: ExperimentSpec, class_map: ClassMap) -> None:
        """Write `training_config.json`."""
        if not in_package(spec):
            logger.warning(
                "rfdetr cannot open the checkpoints, because it has no encoder %s; this tool can",
                spec.model.rfdetr.encoder,
            )
        content = json.dumps(self.settings(spec, class_map), indent=2)
        write_atomically(Path(spec.train.results_dir or ".") / SETTINGS, content + "\n")

    def keys(self, spec: ExperimentSpec, class_map: ClassMap, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        settings = self.settings(spec, class_map)
        train, model, names = settings["train_config"], settings["model_config"], settings["class_names"]
        keys = {
            **({"model": to_rfdetr(weights)} if in_package(spec) else {}),
            "args": {**train, "class_names": names, "num_classes": model["num_classes"]},
            "model_name": settings["model_config_type"].removesuffix("Config"),
            "model_config": model,
        }
        return keys if train["notes"] is None else {**keys, "notes": train["notes"]}

    def settings(self, spec: ExperimentSpec, class_map: ClassMap) -> dict[str, Any]:
        """The content of `training_config.json`."""
        model, names = config_of(spec, {}), index_names(class_map)
        content = {
            "train_config": train_values(spec, self.keywords),
            "model_config": {name: getattr(model, name) for name in MODEL_TABLE},
            "model_config_type": config_name(spec),
            "class_names": names,
            "num_classes": len(names),
        }
        plain: dict[str, Any] = without_secrets(json.loads(json.dumps(content, default=str)))
        return plain


def config_name(spec: ExperimentSpec) -> str:
    """The name of the config class in the package, such as `RFDETRNanoConfig`."""
    variant = spec.model.rfdetr.variant
    names = [name for name, kind in CONFIGS.items() if kind.variant == variant]
    return names[-1]  # an alias that the package has comes last


def train_values(spec: ExperimentSpec, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all fields of `TrainConfig`: those of the spec, else what the user gave, else the defaults."""
    flat = _flat(spec_to_dict(spec))
    return {
        name: flat[row.rule]
        if isinstance(row.rule, str) and row.rule in flat
        else keywords.get(name, None if row.default is ... else row.default)
        for name, row in TRAIN_TABLE.items()
    }


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain data by dotted name, sections and lists included."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat[f"{prefix}{name}"] = value
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
    return flat
