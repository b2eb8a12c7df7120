"""Names of logged metrics: `<phase>/<name>`, as RF-DETR logs them, and the names that TAO has for some of them.

A score of the averaged weights that is logged next to that of the trained weights has the prefix `ema_`, such as
`val/ema_mAP_50_95`. TAO's names are the keys of `status.json`, and are accepted wherever a metric is named.
"""

from __future__ import annotations

import re

MAP, MASK_MAP = "mAP_50_95", "segm_mAP_50_95"
TRAIN_LOSS, VAL_LOSS, VAL_MAP, VAL_MASK_MAP = "train/loss", "val/loss", f"val/{MAP}", f"val/{MASK_MAP}"
# TAO's name of a score, without phase -> the name that is logged.
_TAO_SCORES = {"mAP": MAP, "mAP50": "mAP_50", "segm_mAP": MASK_MAP, "segm_mAP50": "segm_mAP_50"}
_LOGGED_SCORES = {name: tao for tao, name in _TAO_SCORES.items()}
_TAO_NAME = re.compile(r"(train|val|test)_(.+)")


def best_score_name(metric: str, masks: bool) -> str:
    """The validation score that decides the best checkpoint, for a value of `train.best_metric`."""
    name = {"mAP": MAP, "mAR": "mAR"}[metric]
    return f"val/segm_{name}" if masks else f"val/{name}"


def logged_name(name: str) -> str:
    """The name under which a metric is logged: `val/mAP_50_95` for it and for TAO's `val_mAP`."""
    match = _TAO_NAME.fullmatch(name)
    return f"{match[1]}/{_TAO_SCORES.get(match[2], match[2])}" if match else name


def tao_name(name: str) -> str:
    """TAO's name of a logged metric: `val_mAP` for `val/mAP_50_95`."""
    phase, slash, rest = name.partition("/")
    return f"{phase}_{_LOGGED_SCORES.get(rest, rest)}" if slash else name


def averaged_name(name: str) -> str:
    """The name of the same score of the averaged weights: `val/ema_mAP_50_95` for `val/mAP_50_95`."""
    phase, _, rest = logged_name(name).partition("/")
    return f"{phase}/ema_{rest}"
