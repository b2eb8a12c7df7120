"""From the `dataset` section of a spec to data sets and loaders; the only file of this folder that sees a spec."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset

from rtdetr_tool.data.classes import ClassMap
from rtdetr_tool.data.coco import read_source
from rtdetr_tool.data.collate import collate, collate_inference
from rtdetr_tool.data.dataset import EvalDataset, TrainDataset
from rtdetr_tool.data.dataset_folder import read_dataset_folder
from rtdetr_tool.data.folder import ImageFolder, find_images, search, skipped_line
from rtdetr_tool.data.joining import decide_classes, joined_categories, matched, undecided
from rtdetr_tool.data.loader import DetectionLoader, start_worker
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.data.repairs import Repairs
from rtdetr_tool.data.sampling import EvalSampler, TrainSampler
from rtdetr_tool.data.scoring import Scoring
from rtdetr_tool.data.serialized import SerializedRecords
from rtdetr_tool.data.source import Source, drop_missing_images
from rtdetr_tool.data.transforms import TrainTransform
from rtdetr_tool.errors import DataError
from rtdetr_tool.families import all_families
from rtdetr_tool.spec import DatasetSpec, ExperimentSpec

logger = logging.getLogger(__name__)

ALWAYS_REPLACED = 10  # bad training images, whatever their share


def build_train_dataset(spec: DatasetSpec, seed: int = 0, masks: bool = False) -> TrainDataset:
    """All training sources as one data set, with `masks` if asked for; a negative seed stands for a random one."""
    sources = _settled_sources(spec, "train", masks)
    max_bad = largest_bad_count(sum(len(source.images) for source in sources), spec.max_bad_share)
    missing = sum(drop_missing_images(source, spec.on_bad_image) for source in sources)
    if missing > max_bad:
        raise DataError(
            f"{missing} of the {missing + sum(len(source.images) for source in sources)} training images do not exist, "
            f"more than the {max_bad} that dataset.max_bad_share allows; the first is "
            f"{next(s.repairs.examples['image_missing'][0] for s in sources if s.repairs.counts['image_missing'])}. "
            "Correct the image directory or the annotation file, or raise dataset.max_bad_share."
        )
    categories = joined_categories(sources)
    repairs = _report("train", sources)
    class_map = _class_map(spec, categories)
    records = _records(spec, sources, class_map)
    augmentation = spec.augmentation
    transform = TrainTransform(
        size=tuple(augmentation.train_spatial_size),
        distortion_prob=augmentation.distortion_prob,
        iou_crop_prob=augmentation.iou_crop_prob,
        preserve_aspect_ratio=augmentation.preserve_aspect_ratio,
    )
    dataset = TrainDataset(
        records, class_map, transform, seed, spec.on_bad_image, repairs, masks, max_bad - missing
    )
    logger.info("Training data: %d images, %s", len(dataset), class_map.describe())
    return dataset


def largest_bad_count(images: int, share: float) -> int:
    """How many of the training images may be missing or unreadable with `dataset.on_bad_image: skip`."""
    return max(ALWAYS_REPLACED, int(images * share))


def train_categories(spec: DatasetSpec) -> dict[int, str]:
    """Category id -> name of all training sources, whatever `num_classes` says."""
    return joined_categories(_settled_sources(spec, "train"))


def build_eval_dataset(
    spec: DatasetSpec, split: str = "val", class_map: ClassMap | None = None, masks: bool = False
) -> EvalDataset:
    """The `val` or `test` source.

    With `class_map` (of the training data or a checkpoint) the source's categories must be among its classes; without,
    they are numbered as the spec says. `masks` reads those of the objects, too.
    """
    sources = (_settled_sources if class_map is None else read_sources)(spec, split, masks)
    if len(sources) != 1:
        raise DataError(f"dataset.{split}_data_sources must be one data source, not {len(sources)}.")
    source = sources[0]
    drop_missing_images(source, "error")
    class_map = _class_map(spec, source.categories) if class_map is None else matched(source, class_map)
    dataset = EvalDataset(
        _records(spec, [source], class_map),
        class_map,
        spec.augmentation.eval_spatial_size,
        spec.augmentation.preserve_aspect_ratio,
        _report(split, [source]),
        masks,
    )
    logger.info("%s data: %d images, %s", split.capitalize(), len(dataset), class_map.describe())
    return dataset


def read_sources(spec: DatasetSpec, split: str, masks: bool = False) -> list[Source]:
    """The annotations of every source of `train`, `val` or `test`, whatever their format.

    Raises:
        DataError: `masks` are asked for, and a source has none.
    """
    entries = _entries(spec, split)
    if not entries:
        raise DataError(
            f"dataset.{split}_data_sources is not set: it needs image_dir and json_file, or the dataset_dir of a data "
            "set."
        )
    sources = [_read(entry, split, spec.format, masks) for entry in entries]
    for source in sources:
        objects = sum(len(image.rows) for image in source.images.values())
        if masks and objects and not source.has_masks:
            raise DataError(
                f"{source.name} (dataset.{split}_data_sources) has {objects} objects and not one with a mask, which a "
                "segmentation head needs: give COCO files with `segmentation` or YOLO labels with outlines, or train "
                f"boxes alone ({' or '.join(filter(None, (family.without_masks() for family in all_families())))})."
            )
    return sources


def source_images(spec: DatasetSpec, split: str) -> list[str]:
    """The image files of `train`, `val`, `test` or `infer`: all in the folder where one is named, else the split's."""
    paths: dict[str, None] = {}
    for entry in _entries(spec, split):
        if entry.get("dataset_dir"):
            source = _read(entry, split, spec.format)
            drop_missing_images(source, "skip")
            paths.update(dict.fromkeys(image.path for image in source.images.values()))
        elif entry.get("image_dir"):
            paths.update(dict.fromkeys(find_images(entry["image_dir"])))
    if not paths:
        raise DataError(f"dataset.{split}_data_sources names no images.")
    return list(paths)


def build_inference_dataset(spec: DatasetSpec) -> ImageFolder:
    """Every image of the folders in `dataset.infer_data_sources.image_dir` (one or a list)."""
    folders = (spec.infer_data_sources or {}).get("image_dir")
    if not folders:
        raise DataError("dataset.infer_data_sources.image_dir is not set: a folder of images, or a list of folders.")
    augmentation, found = spec.augmentation, search(folders)
    if found.skipped:
        logger.warning("%s.", skipped_line(found.skipped))
    return ImageFolder(
        found.images, augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio, found.skipped
    )


def scoring_of(spec: ExperimentSpec) -> Scoring:
    """How the spec has detections scored."""
    ids = spec.dataset.eval_class_ids
    return Scoring(
        class_ids=None if ids is None else tuple(ids),
        max_dets=spec.evaluate.max_dets,
        num_select=spec.model.num_select,
        num_queries=spec.model.query_count,
        masks=spec.model.predicts_masks,
    )


def build_loader(
    dataset: Dataset, spec: DatasetSpec, training: bool, rank: int = 0, world_size: int = 1
) -> DetectionLoader:
    """A loader of this rank's share of `dataset`; `spec.batch_size` is per rank.

    Ranks of a training run must be given data sets with the same seed, or they would not see disjoint images.
    """
    if not spec.batch_size:
        raise DataError("dataset.batch_size auto is tried out by `rtdetr train`; give a number here")
    if training:
        sampler = TrainSampler(len(dataset), dataset.seed, spec.batch_size, rank, world_size)
        drop_last = sampler.full_steps > 0
    else:
        sampler, drop_last = EvalSampler(len(dataset), rank, world_size), False
    size = input_size(spec.augmentation.eval_spatial_size, spec.augmentation.preserve_aspect_ratio)
    merge = partial(collate_inference, size=size) if isinstance(dataset, ImageFolder) else collate
    return DetectionLoader(
        dataset,
        batch_size=spec.batch_size,
        sampler=sampler,
        drop_last=drop_last,
        num_workers=spec.workers,
        collate_fn=merge,
        pin_memory=spec.pin_memory and torch.cuda.is_available(),
        persistent_workers=spec.workers > 0,
        worker_init_fn=start_worker,
    )


def _read(entry: Mapping[str, Any], split: str, data_format: str, masks: bool = False) -> Source:
    """A source `{image_dir, json_file}` or `{dataset_dir, split}`."""
    if entry.get("dataset_dir"):
        source = read_dataset_folder(entry["dataset_dir"], entry.get("split") or "", data_format, masks)
    else:
        missing = [key for key in ("image_dir", "json_file") if not entry.get(key)]
        if missing:
            raise DataError(f"An entry of dataset.{split}_data_sources lacks {' and '.join(missing)}: {dict(entry)}")
        source = read_source(entry["image_dir"], entry["json_file"], masks)
    if not source.images:
        raise DataError(f"{source.name} (dataset.{split}_data_sources) lists no images.")
    return source


def _settled_sources(spec: DatasetSpec, split: str, masks: bool = False) -> list[Source]:
    """The sources of a split, with the classes that all splits of the spec give them."""
    sources = read_sources(spec, split, masks)
    if undecided(sources):
        decide_classes(sources, _other_splits(spec, split))
    return sources


def _other_splits(spec: DatasetSpec, split: str) -> list[Source]:
    """The sources of the other splits, each once; what cannot be read is reported when it is loaded itself."""
    read, found = _entries(spec, split), []
    for other in ("train", "val", "test"):
        for entry in _entries(spec, other):
            if entry in read:
                continue
            read.append(entry)
            with contextlib.suppress(DataError):
                found.append(_read(entry, other, spec.format))
    return found


def _entries(spec: DatasetSpec, split: str) -> list[Mapping[str, Any]]:
    given = getattr(spec, f"{split}_data_sources")
    return [given] if isinstance(given, Mapping) else list(given or [])


def _class_map(spec: DatasetSpec, categories: Mapping[int, str]) -> ClassMap:
    return ClassMap.from_categories(categories, spec.num_classes, spec.class_ids, spec.remap_mscoco_category)


def _records(
    spec: DatasetSpec, sources: Sequence[Source], class_map: ClassMap
) -> SerializedRecords | list[ImageRecord]:
    records = [record for source in sources for record in source.records(class_map)]
    return SerializedRecords(records) if spec.dataset_type == "serialized" else records


def _report(split: str, sources: Sequence[Source]) -> Repairs:
    """Log what was mended in each file; all of it together."""
    together = Repairs()
    for source in sources:
        for line in source.repairs.lines():
            logger.warning("%s (%s): %s", source.name, split, line)
        together.include(source.repairs)
    return together
