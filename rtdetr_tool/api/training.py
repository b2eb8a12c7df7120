"""Train and evaluate an opened detector."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from rtdetr_tool.api.keywords import applied
from rtdetr_tool.api.train_arguments import TrainArguments, check_class_names
from rtdetr_tool.checkpoints.class_rows import Classes
from rtdetr_tool.data.build_sources import read_sources, train_categories
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.errors import UserError
from rtdetr_tool.families.base import SIZE_FIELDS
from rtdetr_tool.families.keywords import Settings
from rtdetr_tool.formats.base import Recorded
from rtdetr_tool.formats.opening import OpenedDetector, OpenedModel, open_detector
from rtdetr_tool.formats.resolve import resolve
from rtdetr_tool.metrics.result import CocoResult
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.spec import ExperimentSpec, LoadedSpec, spec_from_dict, spec_to_dict
from rtdetr_tool.spec.required import results_folder
from rtdetr_tool.training.checkpointing import find_resume_path
from rtdetr_tool.training.fit import fit
from rtdetr_tool.training.fit_result import FitResult
from rtdetr_tool.training.module import DetectorModule
from rtdetr_tool.workflows.detection import score_split

logger = logging.getLogger(__name__)

OUTPUT = "output"  # default results folder


def train(
    opened: OpenedDetector,
    changes: Settings,
    resume: str | os.PathLike[str] | bool | None,
    arguments: TrainArguments,
) -> tuple[FitResult, OpenedDetector | None]:
    """Train from the detector's weights, or resume a run; return the result and the detector of the best checkpoint.

    The detector is None after a dry run.
    """
    if resume and resume is not True:
        changes = {**changes, "train.resume_training_checkpoint_path": os.fspath(resume)}
    spec = training_spec(opened, changes)
    if arguments.run_test:
        read_sources(spec.dataset, "test")  # report a missing test split before training
    ratio = spec.dataset.augmentation.preserve_aspect_ratio
    if ratio != opened.spec.dataset.augmentation.preserve_aspect_ratio:
        logger.warning("The weights were trained with preserve_aspect_ratio %s; this run has %s", not ratio, ratio)
    folder = results_folder(spec.train, "train")
    earlier = find_resume_path(folder)
    if earlier and not resume:
        raise UserError(
            f"train: {folder} already contains a run ({earlier.name}). Pass resume=True to resume it, "
            "or another output_dir to start a new run from this detector's weights."
        )
    weights, names = opened.detector.state_dict(), known_classes(opened)

    def build_module(spec: ExperimentSpec, class_map: ClassMap) -> DetectorModule:
        if arguments.class_names is not None:
            check_class_names(arguments.class_names, [entry.name for entry in class_map.entries])
        module = DetectorModule(spec, class_map, pretrained=bool(opened.meta))
        report = module.start_from(weights, "the detector", names)
        logger.log(logging.INFO if report.complete else logging.WARNING, "%s", report.summary())
        return module

    result = fit(spec, arguments.callbacks, build_module, run_test=arguments.run_test)
    path = result.best_path or result.latest_path
    outside = spec.model.family.outside_weights(spec.model)
    explicit = {} if outside is None else applied({}, {f"model.{outside.field}": outside.path})
    return result, open_detector(str(path), LoadedSpec(ExperimentSpec(), explicit)) if path else None


def known_classes(opened: OpenedDetector) -> Classes | None:
    """The classes of a detector's class head rows: empty without names, None if the rows are random."""
    if opened.untrained_heads:
        return None
    return opened.class_map.to_list() if opened.class_map else []


def training_spec(opened: OpenedDetector, changes: Settings) -> ExperimentSpec:
    """The detector's spec with the changes, and the number of classes of the training data."""
    data = spec_to_dict(opened.spec)
    family, model = opened.spec.model.family, opened.spec.model
    side_changes = {f"model.{name}" for name in family.image_sides} & set(changes)
    sizes = family.default_sizes(getattr(model, family.section)) if family.section else {}
    augmentation = data["dataset"]["augmentation"]
    for name in SIZE_FIELDS:  # recompute default sizes
        if side_changes or (name in sizes and augmentation[name] == sizes[name]):
            del augmentation[name]
    if not {"train.results_dir", "results_dir"} & set(changes):
        data["train"]["results_dir"] = OUTPUT
    data = applied(data, changes)
    spec = spec_from_dict(data, "train")
    if {"dataset.num_classes", "dataset.class_ids"} & set(changes):
        return spec
    settings = class_settings(train_categories(spec.dataset), opened.class_map)
    return spec_from_dict(applied(data, settings), "train") if settings else spec


def class_settings(categories: Mapping[int, str], known: ClassMap | None) -> Settings:
    """Settings for a class head of these categories, in their order; empty if the detector knows them all."""
    if known is not None and categories.items() <= known.categories.items():
        return {}
    return {"dataset.num_classes": None, "dataset.class_ids": "contiguous"}


def scoring_spec(
    recorded: ExperimentSpec, changes: Settings, source: str, class_map: ClassMap | None, size: tuple[int, int] | None
) -> ExperimentSpec:
    """A detector's spec with the changes; `size` is (height, width) if the detector only supports that.

    Raises:
        CheckpointError: the changes contradict the recorded preprocessing or class numbering.
    """
    known = spec_to_dict(recorded)
    loaded = LoadedSpec(spec_from_dict(applied(known, changes)), applied({}, changes))
    meta = {"spec": known, "classes": class_map.to_list() if class_map else []}
    resolve(Recorded(source, meta), loaded)
    sizes = loaded.spec.dataset.augmentation
    requested = input_size(sizes.eval_spatial_size, sizes.preserve_aspect_ratio)
    if size is not None and requested != size:
        raise UserError(
            f"evaluate: {source} only supports inputs of {size[0]} x {size[1]} (height x width), but eval_spatial_size "
            f"is {requested[0]} x {requested[1]}; remove it"
        )
    return loaded.spec


def evaluate(model: OpenedModel, split: str, conf_threshold: float) -> CocoResult:
    """Score a model on the `test` or `val` source of its spec, in this process."""
    evaluator = score_split(model, split, conf_threshold).evaluator
    return evaluator.compute()
