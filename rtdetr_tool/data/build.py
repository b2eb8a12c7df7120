"""From the `dataset` section of a spec to data sets and loaders; the only file of this folder that sees a spec."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset

from rtdetr_tool.data.classes import ClassMap, merge_categories
from rtdetr_tool.data.coco import CocoSource, drop_missing_images, read_source
from rtdetr_tool.data.collate import collate, collate_inference
from rtdetr_tool.data.dataset import EvalDataset, TrainDataset
from rtdetr_tool.data.folder import ImageFolder, find_images
from rtdetr_tool.data.loader import DetectionLoader, start_worker
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.data.repairs import Repairs
from rtdetr_tool.data.sampling import EvalSampler, TrainSampler
from rtdetr_tool.data.serialized import SerializedRecords
from rtdetr_tool.data.transforms import TrainTransform
from rtdetr_tool.errors import DataError
from rtdetr_tool.spec import DatasetSpec

logger = logging.getLogger(__name__)


def build_train_dataset(spec: DatasetSpec, seed: int = 0) -> TrainDataset:
    """All training sources as one data set; a negative seed stands for a random one."""
    sources = [_read(entry, "train") for entry in _entries(spec.train_data_sources, "train")]
    for source in sources:
        drop_missing_images(source, spec.on_bad_image)
    class_map = _class_map(spec, merge_categories((source.name, source.categories) for source in sources))
    records = _records(spec, sources, class_map)
    augmentation = spec.augmentation
    transform = TrainTransform(
        size=tuple(augmentation.train_spatial_size),
        distortion_prob=augmentation.distortion_prob,
        iou_crop_prob=augmentation.iou_crop_prob,
        preserve_aspect_ratio=augmentation.preserve_aspect_ratio,
    )
    dataset = TrainDataset(records, class_map, transform, seed, spec.on_bad_image, _report("train", sources))
    logger.info("Training data: %d images, %s", len(dataset), class_map.describe())
    return dataset


def build_eval_dataset(spec: DatasetSpec, split: str = "val", class_map: ClassMap | None = None) -> EvalDataset:
    """The `val` or `test` source.

    With `class_map` (of the training data or a checkpoint) the file's categories must be among its classes, by id and
    name; without, they are numbered as the spec says.
    """
    entries = _entries(getattr(spec, f"{split}_data_sources"), split)
    if len(entries) != 1:
        raise DataError(f"dataset.{split}_data_sources must be one data source, not {len(entries)}.")
    source = _read(entries[0], split)
    drop_missing_images(source, "error")
    if class_map is None:
        class_map = _class_map(spec, source.categories)
    else:
        if not class_map.ids_known:
            class_map = class_map.with_ids_of(source.categories, source.name)
        class_map.check_categories(source.categories, source.name)
    dataset = EvalDataset(
        _records(spec, [source], class_map),
        class_map,
        spec.augmentation.eval_spatial_size,
        spec.augmentation.preserve_aspect_ratio,
        _report(split, [source]),
    )
    logger.info("%s data: %d images, %s", split.capitalize(), len(dataset), class_map.describe())
    return dataset


def build_inference_dataset(spec: DatasetSpec) -> ImageFolder:
    """Every image of the folders in `dataset.infer_data_sources.image_dir` (one or a list)."""
    folders = (spec.infer_data_sources or {}).get("image_dir")
    if not folders:
        raise DataError("dataset.infer_data_sources.image_dir is not set: a folder of images, or a list of folders.")
    augmentation = spec.augmentation
    return ImageFolder(find_images(folders), augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio)


def build_loader(
    dataset: Dataset, spec: DatasetSpec, training: bool, rank: int = 0, world_size: int = 1
) -> DetectionLoader:
    """A loader of this rank's share of `dataset`; `spec.batch_size` is per rank.

    Ranks of a training run must be given data sets with the same seed, or they would not see disjoint images.
    """
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


def _entries(sources: Any, split: str) -> list[Mapping[str, Any]]:
    """The data sources of a split as a list; a single mapping is a list of one."""
    entries = [sources] if isinstance(sources, Mapping) else list(sources or [])
    for entry in entries:
        missing = [key for key in ("image_dir", "json_file") if not entry.get(key)]
        if missing:
            raise DataError(f"An entry of dataset.{split}_data_sources lacks {' and '.join(missing)}: {dict(entry)}")
    if not entries:
        raise DataError(f"dataset.{split}_data_sources is not set: it needs image_dir and json_file.")
    return entries


def _read(entry: Mapping[str, Any], split: str) -> CocoSource:
    source = read_source(entry["image_dir"], entry["json_file"])
    if not source.images:
        raise DataError(f"{source.name} (dataset.{split}_data_sources) lists no images.")
    return source


def _class_map(spec: DatasetSpec, categories: Mapping[int, str]) -> ClassMap:
    return ClassMap.from_categories(categories, spec.num_classes, spec.class_ids, spec.remap_mscoco_category)


def _records(
    spec: DatasetSpec, sources: Sequence[CocoSource], class_map: ClassMap
) -> SerializedRecords | list[ImageRecord]:
    records = [record for source in sources for record in source.records(class_map)]
    return SerializedRecords(records) if spec.dataset_type == "serialized" else records


def _report(split: str, sources: Sequence[CocoSource]) -> Repairs:
    """Log what was mended in each file; all of it together."""
    together = Repairs()
    for source in sources:
        for line in source.repairs.lines():
            logger.warning("%s (%s): %s", source.name, split, line)
        together.include(source.repairs)
    return together
