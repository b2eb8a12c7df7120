"""Check that a checkpoint belongs to the run that is about to load it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from rtdetr_tool.checkpoints.metadata import KEY, check_against, section_of
from rtdetr_tool.checkpoints.recorded_fields import value_at
from rtdetr_tool.checkpoints.sub_detectors import recorded_supernet
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.redaction import without_secrets
from rtdetr_tool.spec import ExperimentSpec, spec_to_dict
from rtdetr_tool.spec.queries import parameter_group_fields

logger = logging.getLogger(__name__)

_START_A_NEW_RUN = (
    "A run can only be resumed with the same model, classes and optimizer. To start a new run, set another results_dir "
    "(-r); to start it from these weights, set train.pretrained_model_path, which copies class rows by name."
)

_ADAPTERS = "model.backbone_lora."  # fields that change what the adapters of a checkpoint mean

# What the validation scores of a run depend on besides the model and the classes, which must be the same anyway.
SCORING_FIELDS = (
    "evaluate.max_dets",
    "dataset.eval_class_ids",
    "dataset.augmentation.eval_spatial_size",
    "model.num_select",
    "train.enable_ema",
    "train.ema.validate_original_weights",
    "dataset.val_data_sources",
)


def check_checkpoint(
    checkpoint: Mapping[str, Any],
    spec: ExperimentSpec,
    class_map: ClassMap,
    source: str,
    group_sizes: Sequence[int] | None,
    resuming: bool,
) -> Mapping[str, Any]:
    """The metadata of a checkpoint that fits `spec` and the classes of the data.

    Args:
        group_sizes: numbers of parameters in the groups of the run's optimizer; None if its state is not compared.
        resuming: whether the run continues training from the checkpoint, so that all fields and the optimizer must fit.

    Raises:
        CheckpointError: the checkpoint is of another program, model, set of classes or optimizer.
    """
    meta = checkpoint.get(KEY)
    if not isinstance(meta, Mapping):
        raise CheckpointError(
            f"{source} was not saved by rtdetr_tool. Set train.pretrained_model_path to it to start from its weights."
        )
    try:
        check_against(spec, meta, source=source, every_field=resuming, advice="")
        _check_classes(meta["classes"], class_map, source)
        if resuming and group_sizes is not None:
            _check_optimizer(checkpoint, meta, spec, group_sizes, source)
        if resuming:
            _compare_scoring(meta, spec, source)
            _compare_supernets(meta, spec, source)
    except CheckpointError as error:
        raise CheckpointError(f"{error}\n{_START_A_NEW_RUN}" if resuming else str(error)) from None
    return meta


def _check_classes(stored: Sequence[Mapping[str, Any]], class_map: ClassMap, source: str) -> None:
    expected = class_map.to_list()
    if not _same_classes(stored, class_map):
        raise CheckpointError(
            f"The classes differ: the data has {_format_classes(expected)}, {source} has {_format_classes(stored)}."
        )
    if not stored:
        logger.warning(
            "%s has no class names; using its class rows by position, as if its classes were %s",
            source, _format_classes(expected),
        )  # fmt: skip


def _same_classes(stored: Sequence[Mapping[str, Any]], class_map: ClassMap) -> bool:
    """Compare names and category ids. Files of other programs may have only the names, or neither."""
    if any(entry.get("id") is not None for entry in stored):
        return list(stored) == class_map.to_list()
    names = {entry["index"]: entry["name"] for entry in stored}
    return not names or names == {entry.index: entry.name for entry in class_map.entries}


def _check_optimizer(
    checkpoint: Mapping[str, Any],
    meta: Mapping[str, Any],
    spec: ExperimentSpec,
    group_sizes: Sequence[int],
    source: str,
) -> None:
    """Raise CheckpointError if the checkpoint's optimizer state does not fit the spec's optimizer."""
    expected, stored = spec_to_dict(spec), section_of(meta, "spec")
    values = {name: (value_at(expected, name), value_at(stored, name)) for name in parameter_group_fields()}
    changed = {name: pair for name, pair in values.items() if pair[0] != pair[1]}
    states = checkpoint.get("optimizer_states")
    if not states or not changed:
        return
    stored_sizes = [len(group["params"]) for group in states[0]["param_groups"]]
    other_model = any(name.startswith(("train.optim.optimizer", _ADAPTERS)) for name in changed)
    if other_model or list(group_sizes) != stored_sizes:
        differences = "; ".join(
            f"{name} is {now!r}, but {then!r} in the checkpoint" for name, (now, then) in changed.items()
        )
        raise CheckpointError(f"{source} has the state of a different optimizer ({differences}).")


def _compare_scoring(meta: Mapping[str, Any], spec: ExperimentSpec, source: str) -> None:
    """Warn if the scores of the run so far were measured in a different way than those to come."""
    now, then = without_secrets(spec_to_dict(spec)), section_of(meta, "spec")
    changed = []
    for name in SCORING_FIELDS:
        before, after = value_at(then, name), value_at(now, name)
        known = name.rpartition(".")[2] in section_of(then, name.rpartition(".")[0])
        if known and before != after:
            changed.append(name if name.endswith("sources") else f"{name} is {after!r}, but was {before!r}")
    if changed:
        logger.warning(
            "Scores of %s and new ones are not comparable, because these fields have changed: %s. The best checkpoint "
            "and early stopping still compare them. To start over with these weights, set another results_dir (-r) and "
            "train.pretrained_model_path.",
            source, "; ".join(changed),
        )  # fmt: skip


def _compare_supernets(meta: Mapping[str, Any], spec: ExperimentSpec, source: str) -> None:
    """Warn if the run has trained other sub-detectors so far than those to come, which its checkpoints will record."""
    before, now = recorded_supernet(meta), spec.train.supernet
    if before != (now if now.enabled else None):
        logger.warning(
            "%s was trained with other values of train.supernet; the run continues with those of the spec", source
        )


def _format_classes(classes: Sequence[Mapping[str, Any]], limit: int = 8) -> str:
    names = [f"{entry.get('id', '?')}: {entry.get('name')}" for entry in classes]
    return "{" + ", ".join(names[:limit]) + (", ..." if len(names) > limit else "") + "}"
