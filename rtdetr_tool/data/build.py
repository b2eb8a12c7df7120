"""Build datasets and loaders from the `dataset` section of a spec.

No other modules of `data` but `build_sources` and `build_augmentation` read a spec.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, overload

import torch

from rtdetr_tool.catalog import BOXES
from rtdetr_tool.data.array_files import check_tiff_support
from rtdetr_tool.data.build_augmentation import mixing_of, stages_of, train_transform
from rtdetr_tool.data.build_sampling import draw_factors, source_shares
from rtdetr_tool.data.build_sources import read_sources, sources_with_classes
from rtdetr_tool.data.collate import InferenceBatch, collate, collate_inference
from rtdetr_tool.data.dataset import DetectionDataset, EvalDataset, TrainDataset
from rtdetr_tool.data.folder import ImageFolder, search, skipped_line
from rtdetr_tool.data.image_cache import ImageCache
from rtdetr_tool.data.joining import joined_categories, match_classes, report_confusable
from rtdetr_tool.data.loader import DetectionLoader, start_worker
from rtdetr_tool.data.pixels import RGB, PixelFormat
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.data.repairs import Repairs
from rtdetr_tool.data.sampling import EvalSampler, TrainSampler
from rtdetr_tool.data.scoring import COCO_MAX_DETS, Scoring
from rtdetr_tool.data.serialized import SerializedRecords
from rtdetr_tool.data.source import Source, drop_missing_images
from rtdetr_tool.data.tiles import Tiling, collate_tiles
from rtdetr_tool.errors import DataError
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.keypoints import Pose, swaps_of_pairs
from rtdetr_tool.ops.structures import Batch
from rtdetr_tool.spec import DatasetSpec, ExperimentSpec
from rtdetr_tool.spec.tiles import TilesSpec

logger = logging.getLogger(__name__)

ALWAYS_REPLACED = 10  # number of bad training images that is always accepted


def build_train_dataset(
    spec: DatasetSpec, seed: int = 0, kind: str = BOXES, num_epochs: int | None = None, pixels: PixelFormat = RGB
) -> TrainDataset:
    """All training sources as one dataset; a negative seed means a random seed.

    Args:
        kind: what is read of objects, one of `catalog.PREDICTS`.
        num_epochs: the length of the run, from which the epochs of augmentation follow; None = no end.
        pixels: what images are decoded to.
    """
    sources = sources_with_classes(spec, "train", kind, with_masks=spec.augmentation.copy_paste_prob > 0)
    max_bad = largest_bad_count(sum(len(source.images) for source in sources), spec.max_bad_share)
    missing = sum(drop_missing_images(source, spec.on_bad_image) for source in sources)
    if missing > max_bad:
        raise DataError(
            f"{missing} of {missing + sum(len(source.images) for source in sources)} training images do not exist, but "
            f"dataset.max_bad_share allows at most {max_bad}. The first missing image is "
            f"{next(s.repairs.examples['image_missing'][0] for s in sources if s.repairs.counts['image_missing'])}. "
            "Fix the image directory or the annotation file, or increase dataset.max_bad_share."
        )
    categories = joined_categories(sources)
    repairs = _report("train", sources)
    class_map = _class_map(spec, categories, _joined_poses(sources))
    records = _records(spec, sources, class_map, pixels)
    if pixels.channels != 3 and spec.augmentation.distortion_prob:
        logger.info(
            "Skipping distortions of saturation, hue and channel order, which exist only for images with 3 channels "
            "(model.num_channels is %d)", pixels.channels,
        )  # fmt: skip
    cache = None if spec.cache == "none" else ImageCache(spec.cache, int(spec.cache_gb * 1e9), len(records), pixels)
    transform, mixing = train_transform(spec.augmentation, class_map), mixing_of(spec.augmentation)
    stages = stages_of(spec.augmentation, num_epochs)
    dataset = TrainDataset(
        records,
        class_map,
        transform,
        seed,
        spec.on_bad_image,
        repairs,
        kind,
        max_bad - missing,
        cache,
        mixing,
        stages,
        pixels,
        draw_factors(records, spec.repeat_threshold),
        source_shares(sources, spec.train_source_shares),
    )
    logger.info("Training data: %d images, %s", len(dataset), class_map.describe())
    return dataset


def largest_bad_count(images: int, share: float) -> int:
    """Maximum number of missing or unreadable training images with `dataset.on_bad_image: skip`."""
    return max(ALWAYS_REPLACED, int(images * share))


def build_eval_dataset(
    spec: DatasetSpec,
    split: str = "val",
    class_map: ClassMap | None = None,
    kind: str = BOXES,
    tiling: Tiling | None = None,
    pixels: PixelFormat = RGB,
) -> EvalDataset:
    """The `val` or `test` source as a dataset, with `tiling` of tiled images.

    With `class_map` (from the training data or a checkpoint) the categories of the source must be among its classes;
    otherwise they are numbered as the spec specifies. `kind` is what is read of objects (`catalog.PREDICTS`), `pixels`
    what images are decoded to.
    """
    sources = (sources_with_classes if class_map is None else read_sources)(spec, split, kind)
    if len(sources) != 1:
        raise DataError(f"dataset.{split}_data_sources: expected one data source, but got {len(sources)}")
    source = sources[0]
    drop_missing_images(source, "error")
    if class_map is None:
        report_confusable([source])
        class_map = _class_map(spec, source.categories, source.poses)
    else:
        class_map = match_classes(source, class_map)
    dataset = EvalDataset(
        _records(spec, [source], class_map, pixels),
        class_map,
        spec.augmentation.eval_spatial_size,
        spec.augmentation.preserve_aspect_ratio,
        _report(split, [source]),
        kind,
        tiling,
        pixels,
    )
    logger.info("%s data: %d images, %s", split.capitalize(), len(dataset), class_map.describe())
    return dataset


def build_inference_dataset(spec: DatasetSpec, pixels: PixelFormat = RGB) -> ImageFolder:
    """All images in the folders of `dataset.infer_data_sources.image_dir` (a path or a list of paths)."""
    folders = (spec.infer_data_sources or {}).get("image_dir")
    if not folders:
        raise DataError(
            "dataset.infer_data_sources.image_dir: required, but not set; expected an image folder or a list of folders"
        )
    augmentation, contents = spec.augmentation, search(folders, arrays=not pixels.is_rgb)
    if contents.skipped:
        logger.warning("%s", skipped_line(contents.skipped))
    size, keep_ratio = augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio
    return ImageFolder(contents.images, size, keep_ratio, contents.skipped, pixels=pixels)


def tiling_of(tiles: TilesSpec, spec: DatasetSpec) -> Tiling | None:
    """How images are cut into tiles; None if they are not. A tile has the size of the network's input by default."""
    if not tiles.enabled:
        return None
    augmentation = spec.augmentation
    height, width = tiles.size or input_size(augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio)
    batch_size = spec.eval_batch_size or spec.batch_size
    return Tiling((height, width), tiles.overlap, tiles.whole_image, tiles.merge, tiles.threshold, batch_size)


def scoring_of(spec: ExperimentSpec) -> Scoring:
    """How detections are scored with this spec."""
    ids = spec.dataset.eval_class_ids
    return Scoring(
        class_ids=None if ids is None else tuple(ids),
        max_dets=spec.evaluate.max_dets,
        usual_max_dets=spec.model.family.recipe.get("evaluate.max_dets", COCO_MAX_DETS),
        num_select=spec.model.num_select,
        num_queries=spec.model.query_count,
        kind=spec.model.predicts,
    )


@overload
def build_loader(
    dataset: DetectionDataset, spec: DatasetSpec, training: bool, rank: int = 0, world_size: int = 1
) -> DetectionLoader[Batch]: ...


@overload
def build_loader(
    dataset: ImageFolder, spec: DatasetSpec, training: bool, rank: int = 0, world_size: int = 1
) -> DetectionLoader[InferenceBatch]: ...


def build_loader(
    dataset: DetectionDataset | ImageFolder, spec: DatasetSpec, training: bool, rank: int = 0, world_size: int = 1
) -> DetectionLoader[Batch] | DetectionLoader[InferenceBatch]:
    """A loader of this rank's share of `dataset`; `spec.batch_size` is per rank.

    All ranks of a training run must use the same dataset seed, so that they see disjoint images.
    """
    batch_size = spec.batch_size if training or isinstance(dataset, ImageFolder) else spec.eval_batch_size
    batch_size = batch_size or spec.batch_size
    if not batch_size:
        raise DataError("dataset.batch_size: auto is supported only by `rtdetr train`; expected a number")
    sampler: TrainSampler | EvalSampler
    if training:
        assert isinstance(dataset, TrainDataset)
        sampler = TrainSampler(
            len(dataset), dataset.seed, spec.batch_size, rank, world_size, dataset.factors, dataset.sources
        )
        drop_last = sampler.full_steps > 0
    else:
        sampler = EvalSampler(len(dataset), rank, world_size)
        drop_last = False
    size = input_size(spec.augmentation.eval_spatial_size, spec.augmentation.preserve_aspect_ratio)
    shape = (dataset.pixels.channels, *size)
    merge: Callable[..., Any] = collate
    if isinstance(dataset, (ImageFolder, EvalDataset)) and dataset.tiling is not None:
        batch_size = 1  # image; its tiles are many
        merge = partial(collate_tiles, tiling=dataset.tiling, shape=shape, strict=isinstance(dataset, EvalDataset))
    elif isinstance(dataset, ImageFolder):
        merge = partial(collate_inference, shape=shape)
    return DetectionLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last,
        num_workers=spec.workers,
        collate_fn=merge,
        pin_memory=spec.pin_memory and torch.cuda.is_available(),
        persistent_workers=spec.workers > 0,
        worker_init_fn=start_worker,
    )


def _class_map(spec: DatasetSpec, categories: Mapping[int, str], poses: Mapping[int, Pose]) -> ClassMap:
    class_map = ClassMap.from_categories(categories, spec.num_classes, spec.class_ids, spec.remap_mscoco_category)
    pairs = spec.augmentation.keypoint_flip_pairs
    return class_map.with_poses(poses if pairs is None else _with_swaps(poses, pairs))


def _joined_poses(sources: Sequence[Source]) -> dict[int, Pose]:
    """The poses of all sources by category id; DataError if a category has different numbers of keypoints."""
    poses: dict[int, Pose] = {}
    for source in sources:
        for category_id, pose in source.poses.items():
            known = poses.setdefault(category_id, pose)
            if len(known.names) != len(pose.names):
                raise DataError(
                    f"Category {source.categories[category_id]!r} has {len(pose.names)} keypoints in {source.name}, "
                    f"but {len(known.names)} in another source; expected the same in all sources."
                )
    return poses


def _with_swaps(poses: Mapping[int, Pose], pairs: Sequence[int]) -> dict[int, Pose]:
    """The poses with left and right as in `dataset.augmentation.keypoint_flip_pairs`."""
    changed = {}
    for category_id, pose in poses.items():
        swaps = swaps_of_pairs(pairs, len(pose.names))
        if swaps is None:
            raise DataError(
                f"dataset.augmentation.keypoint_flip_pairs: {list(pairs)} is invalid; expected pairs of different "
                f"keypoints, 0 to {len(pose.names) - 1}"
            )
        changed[category_id] = replace(pose, swaps=swaps)
    return changed


def _records(
    spec: DatasetSpec, sources: Sequence[Source], class_map: ClassMap, pixels: PixelFormat
) -> SerializedRecords | list[ImageRecord]:
    records = [record for source in sources for record in source.records(class_map)]
    for record in () if pixels.is_rgb or pixels.channels == 1 else records:
        check_tiff_support(record.path)
    return SerializedRecords(records) if spec.dataset_type == "serialized" else records


def _report(split: str, sources: Sequence[Source]) -> Repairs:
    """Log the repairs of each source; returns all of them."""
    total = Repairs()
    for source in sources:
        for line in source.repairs.lines():
            logger.warning("%s (%s): %s", source.name, split, line)
        total.include(source.repairs)
    return total
