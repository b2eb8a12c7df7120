"""The `train.checkpointer` section of TAO 7.3: checkpoints ranked by a metric, and the pattern of their names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rtdetr_tool.spec.fields import field

_PLACE = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")
_COUNTERS = ("epoch", "step")  # whole numbers; everything else in a pattern is a metric
_RESERVED = ("model_epoch_", "rtdetr_model_")  # names of the other checkpoints of a run
_LONGEST = 200  # characters; file systems allow 255 bytes


@dataclass(frozen=True)
class CheckpointerSpec:
    """The best checkpoints by a metric, in addition to those at intervals."""

    enable_topk: bool = field(False, "Keep the save_top_k checkpoints with the best value of the metric.")
    replace_periodic: bool = field(
        False,
        "With enable_topk: write no checkpoints at intervals, and let rtdetr_model_latest.pth link to the newest of the"
        " best ones, from which a run then resumes.",
    )
    monitor: str | None = field(
        None,
        "The metric, by its name in the logs or TAO's name; null = val_mAP, with masks or keypoints "
        "val_segm_mAP or val_keypoint_mAP.",
    )
    mode: str | None = field(
        None, "Whether small or large values are good; null = min for losses, otherwise max.", options=("min", "max")
    )
    save_top_k: int = field(1, "Number of checkpoints to keep.", min=1)
    filename: str = field(
        "model_best_{epoch:03d}",
        "Pattern of their names without suffix, with `{epoch}`, `{step}` and metrics, as in `best_{val_mAP:.3f}`.",
    )
    dirpath: str | None = field(None, "Folder for them; null = the results folder.", path="written")
    auto_insert_metric_name: bool = field(False, "Insert the names into the pattern: `{epoch}` becomes `epoch=7`.")


def checkpointer_problems(section: CheckpointerSpec) -> Iterator[str]:
    """What is wrong with the pattern of names."""
    name, pattern = "train.checkpointer.filename", section.filename
    try:
        shown = checkpoint_name(pattern, {}, section.auto_insert_metric_name)
    except ValueError as error:
        yield f"{name}: {pattern!r} is invalid ({error}); expected a pattern such as 'best_{{val_mAP:.3f}}'"
        return
    if not shown or "/" in shown or "\\" in shown or shown.startswith(".") or len(shown) > _LONGEST or "\0" in shown:
        yield (
            f"{name}: {pattern!r} is invalid; expected the name of a file, with at most {_LONGEST} characters; set the "
            "folder with train.checkpointer.dirpath"
        )
    elif "{" in shown or "}" in shown:
        yield f"{name}: {pattern!r} is invalid; expected braces only around `epoch`, `step` and names of metrics"
    elif shown.startswith(_RESERVED):
        yield f"{name}: {pattern!r} is invalid; names that begin with {' or '.join(_RESERVED)} are those of other files"


def metrics_in(pattern: str) -> list[str]:
    """The metrics that a pattern of names contains."""
    return [name for name, _ in _PLACE.findall(pattern) if name not in _COUNTERS]


def checkpoint_name(pattern: str, values: Mapping[str, float], insert_names: bool) -> str:
    """The name of a checkpoint; values that are missing are 0. ValueError for a format that a number cannot have."""

    def number(match: re.Match[str]) -> str:
        name, form = match.group(1), match.group(2) or ""
        value = values.get(name, 0)
        text = format(int(value) if name in _COUNTERS else float(value), form)
        return f"{name.replace('/', '_')}={text}" if insert_names else text

    return _PLACE.sub(number, pattern)
