"""Names of logged metrics: `<phase>/<name>`, as RF-DETR logs them, and the names that TAO has for some of them.

A score of the averaged weights that is logged next to that of the trained weights has the prefix `ema_`, such as
`val/ema_mAP_50_95`. TAO's names are the keys of `status.json`, and are accepted wherever a metric is named.
"""

from __future__ import annotations

import re

from rtdetr_tool.catalog import BOXES, KEYPOINTS, MASKS

# Scores by what a model predicts: AP, AP50, AP75 and recall.
SCORES: dict[str, tuple[str, str, str, str]] = {
    BOXES: ("mAP_50_95", "mAP_50", "mAP_75", "mAR"),
    MASKS: ("segm_mAP_50_95", "segm_mAP_50", "segm_mAP_75", "segm_mAR"),
    KEYPOINTS: ("keypoint_map_50_95", "keypoint_map_50", "keypoint_map_75", "keypoint_mAR"),
}
TRAIN_LOSS, VAL_LOSS, VAL_MAP = "train/loss", "val/loss", f"val/{SCORES[BOXES][0]}"
# The most important scores, which are shown after each validation.
MAIN_SCORES = tuple(name for names in SCORES.values() for name in names[:2])
# TAO's name of a score, without phase -> the name that is logged.
_TAO_PREFIXES = {BOXES: "", MASKS: "segm_", KEYPOINTS: "keypoint_"}
_TAO_SCORES = {
    f"{_TAO_PREFIXES[kind]}{tao}": name
    for kind, names in SCORES.items()
    for tao, name in zip(("mAP", "mAP50"), names, strict=False)
}
_LOGGED_SCORES = {name: tao for tao, name in _TAO_SCORES.items()}
_TAO_NAME = re.compile(r"(train|val|test)_(.+)")


def best_score_name(metric: str, kind: str) -> str:
    """The validation score that decides the best checkpoint of a model that predicts `kind` (`catalog.PREDICTS`).

    Args:
        metric: a value of `train.best_metric`.
    """
    return f"val/{SCORES[kind][0 if metric == 'mAP' else 3]}"


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
