"""Labeled images as torch datasets for training and evaluation."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from rtdetr_tool.catalog import BOXES, KEYPOINTS, MASKS
from rtdetr_tool.data.channels import ChannelMismatch
from rtdetr_tool.data.collate import FailedImage
from rtdetr_tool.data.decoding import decode_image
from rtdetr_tool.data.faults import check_folder
from rtdetr_tool.data.ground_truth import coco_ground_truth
from rtdetr_tool.data.image_cache import ImageCache
from rtdetr_tool.data.mixing import Mixing
from rtdetr_tool.data.pixels import RGB, PixelFormat
from rtdetr_tool.data.preprocess import input_size, letterbox_size, prepare_image
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.data.repairs import Repairs
from rtdetr_tool.data.sampling import SourceShares
from rtdetr_tool.data.scene import Scene, scene_of
from rtdetr_tool.data.stages import Stages
from rtdetr_tool.data.tiles import TiledSample, Tiling, tiled_sample
from rtdetr_tool.data.transforms import TrainTransform, to_relative
from rtdetr_tool.data.window import Placement, Window
from rtdetr_tool.errors import DataError, MachineError
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Target

logger = logging.getLogger(__name__)

Sample = tuple[Tensor, Target]


BOXES_TO_CHECK = 200  # boxes before augmentation, or all if there are fewer
MIN_KEPT = 0.1  # share of boxes that augmentation should keep
_MAX_ATTEMPTS = 20  # bad images in a row before training gives up


class DetectionDataset(Dataset[Sample | TiledSample | FailedImage]):
    """Base class of the datasets below: records, classes, and reading one image.

    In worker processes, a `DataError` or `MachineError` is returned as a `FailedImage`, and the loader raises it in the
    main process.
    """

    cache: ImageCache | None = None
    max_bad: int | None = None  # maximum number of unreadable images that are replaced; None means no limit

    def __init__(
        self,
        records: Sequence[ImageRecord],
        class_map: ClassMap,
        repairs: Repairs | None = None,
        kind: str = BOXES,
        pixels: PixelFormat = RGB,
    ) -> None:
        if not len(records):
            raise DataError("The dataset has no images; expected at least one.")
        self.records, self.class_map = records, class_map
        self.repairs = repairs or Repairs()
        self.pixels = pixels  # what images are decoded to
        self.kind = kind  # what records and targets have, one of `catalog.PREDICTS`
        self._swaps = swaps_by_class(class_map) if kind == KEYPOINTS else None

    def __len__(self) -> int:
        return len(self.records)

    def coco_ground_truth(self) -> dict[str, Any]:
        """All records as a plain COCO dict, see `data.coco.coco_ground_truth`."""
        return coco_ground_truth(self.records, self.class_map)

    def __getitem__(self, index: Any) -> Sample | TiledSample | FailedImage:
        try:
            return self.sample(index)
        except (DataError, MachineError) as error:
            if get_worker_info() is None:
                raise
            return FailedImage("", error)

    def sample(self, index: Any) -> Sample | TiledSample:
        raise NotImplementedError

    def _decode(self, record: ImageRecord, index: int) -> Tensor:
        size = (record.width, record.height) if record.width else None
        try:
            if self.cache is not None:
                return self.cache.read(index, record.path, size)
            return decode_image(record.path, size, self.pixels)
        except DataError:
            check_folder(record.path)
            raise

    def _scene(self, record: ImageRecord, image: Tensor) -> Scene:
        """The objects of an image with what the model predicts of them."""
        return scene_of(record, image, self.kind == MASKS, self._swaps)


def swaps_by_class(class_map: ClassMap) -> NDArray[np.int64]:
    """[classes, P] the keypoint that takes the place of each one in a mirrored image; itself where unknown."""
    swaps = np.tile(np.arange(max(class_map.keypoint_counts, default=0)), (class_map.num_classes, 1))
    for index, pose in class_map.poses.items():
        if pose.swaps is not None:
            swaps[index, : len(pose.swaps)] = pose.swaps
    return swaps


class TrainDataset(DetectionDataset):
    """Augmented images. Sample i of epoch e is a function of (seed, e, i) only.

    Index it with `i` (in the epoch of `set_epoch`, which also reaches running workers) or with `(e, i)`. i + r * length
    is the same image with another augmentation. Targets do not contain crowd regions.

    Args:
        on_bad_image: `skip` warns once about an unreadable image and replaces it with another one, which also depends
            on (seed, e, i) only; `error` raises. Another number of channels always does.
        max_bad: maximum number of different images that may be replaced, `DataError` above; None means no limit.
        cache: of decoded images, by index; None = images are decoded every time.
        mixing: steps that combine images; for copy-paste, records must have masks.
        stages: epochs in which strong steps and mixing are used.
        factors, sources: how often each image is drawn per epoch (see `TrainSampler`); None = once.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        class_map: ClassMap,
        transform: TrainTransform,
        seed: int = 0,
        on_bad_image: str = "skip",
        repairs: Repairs | None = None,
        kind: str = BOXES,
        max_bad: int | None = None,
        cache: ImageCache | None = None,
        mixing: Mixing | None = None,
        stages: Stages | None = None,
        pixels: PixelFormat = RGB,
        factors: NDArray[np.float64] | None = None,
        sources: SourceShares | None = None,
    ) -> None:
        super().__init__(records, class_map, repairs, kind, pixels)
        self.cache, self.factors, self.sources = cache, factors, sources
        self.transform, self.max_bad = transform, max_bad
        self.mixing, self.stages = mixing or Mixing(), stages or Stages()
        self._plain_transform = transform.without_strong_steps()
        self.seed = seed if seed >= 0 else int.from_bytes(os.urandom(4), "little")
        self.on_bad_image = on_bad_image
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._reported = torch.zeros(len(records), dtype=torch.bool).share_memory_()
        self._boxes = torch.zeros(2, dtype=torch.int64).share_memory_()  # before and after augmentation
        self._boxes_checked = torch.zeros(1, dtype=torch.bool).share_memory_()
        self._enough_boxes = max(1, min(BOXES_TO_CHECK, sum(len(record) for record in records)))

    def set_epoch(self, epoch: int) -> None:
        self._epoch[0] = epoch

    def sample(self, index: int | tuple[int, int]) -> Sample:
        epoch, index = index if isinstance(index, tuple) else (int(self._epoch[0]), index)
        position = index if index >= 0 else range(len(self))[index]
        index = position % len(self)
        rng = np.random.default_rng([self.seed, epoch, position])
        is_strong = self.stages.is_strong(epoch)
        transform = self.transform if is_strong else self._plain_transform
        record, scene = self._read(index, rng)
        objects = [len(scene.labels)]
        if self.mixing and self.stages.mixes(epoch):

            def read(rng: np.random.Generator) -> Scene:
                _, other = self._read(int(rng.integers(len(self))), rng)
                objects.append(len(other.labels))
                return other

            mixing_rng = np.random.default_rng([self.seed, epoch, position, 1])
            placed = self.mixing.sample(scene, read, transform, rng, mixing_rng)
        else:
            placed = transform.scene(scene, rng)
        self._count_boxes(sum(objects), len(placed.boxes))
        # An augmented image cannot be mapped back to pixels of the original, so its own size is used.
        height, width = placed.image.shape[-2:]
        scale, shapes = (float(width), float(height)), placed.shapes.of_kind(self.kind)
        target = Target(placed.boxes, placed.labels, record.image_id, scene.size, scale, record.path, **shapes)
        return placed.image, target

    def _read(self, index: int, rng: np.random.Generator) -> tuple[ImageRecord, Scene]:
        """An image and its objects; another image if it cannot be read."""
        for _ in range(_MAX_ATTEMPTS):
            record = self.records[index]
            try:
                return record, self._scene(record, self._decode(record, index))
            except DataError as error:
                if self.on_bad_image == "error" or isinstance(error, ChannelMismatch):
                    raise
                self._report(index, error)
                index = int(rng.integers(len(self)))
        raise DataError(
            f"{_MAX_ATTEMPTS} images in a row cannot be read; the last one is {record.path}. "
            "Check the image directory of dataset.train_data_sources."
        )

    def _scene(self, record: ImageRecord, image: Tensor) -> Scene:
        return scene_of(record, image, self.kind == MASKS or self.mixing.copy_paste_prob > 0, self._swaps)

    def _count_boxes(self, original: int, kept: int) -> None:
        """Warn once if augmentation drops nearly all boxes."""
        self._boxes += torch.tensor([original, kept])
        before, after = self._boxes.tolist()
        if before >= self._enough_boxes and not self._boxes_checked:
            self._boxes_checked[0] = True
            if after < MIN_KEPT * before:
                logger.warning(
                    "Augmentation keeps only %d of the first %d boxes; the others are smaller than one pixel of the "
                    "network's input or were cropped, so there is hardly anything to learn. Check the unit of the "
                    "boxes and dataset.augmentation.train_spatial_size.", after, before,
                )  # fmt: skip

    def _report(self, index: int, error: DataError) -> None:
        if bool(self._reported[index]):
            return
        self._reported[index] = True
        logger.warning("%s Using another image instead (dataset.on_bad_image: skip).", error)
        bad = int(self._reported.sum())
        if self.max_bad is not None and bad > self.max_bad:
            raise DataError(
                f"{bad} different training images cannot be read, but dataset.max_bad_share allows at most "
                f"{self.max_bad}. The last one is {self.records[index].path}. Run `rtdetr validate_data` to list all "
                "of them, then repair or remove them, or increase dataset.max_bad_share."
            )


class EvalDataset(DetectionDataset):
    """Images as used in evaluation, with their ground truth; an unreadable image is always an error.

    Targets, used for the validation loss, do not contain crowd regions; `coco_ground_truth` does.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        class_map: ClassMap,
        spatial_size: Sequence[int],
        preserve_aspect_ratio: bool = False,
        repairs: Repairs | None = None,
        kind: str = BOXES,
        tiling: Tiling | None = None,
        pixels: PixelFormat = RGB,
    ) -> None:
        super().__init__(records, class_map, repairs, kind, pixels)
        self.tiling = tiling
        self.spatial_size, self.preserve_aspect_ratio = tuple(spatial_size), preserve_aspect_ratio

    def sample_of(self, count: int, seed: int) -> EvalDataset:
        """A dataset with `count` of the images, sampled with `seed` and in their original order."""
        indices = sorted(np.random.default_rng(seed).choice(len(self), count, replace=False).tolist())
        records = [self.records[index] for index in indices]
        size, keep_ratio = self.spatial_size, self.preserve_aspect_ratio
        return EvalDataset(records, self.class_map, size, keep_ratio, kind=self.kind, pixels=self.pixels)

    def sample(self, index: int) -> Sample | TiledSample:
        record = self.records[index]
        image, keep = self._decode(record, index), ~record.iscrowd
        prepared = prepare_image(image, self.spatial_size, self.preserve_aspect_ratio)
        across, down = prepared.box_scale
        boxes = torch.from_numpy(to_relative(record.boxes[keep], (down, across)))
        labels = torch.from_numpy(record.labels[keep])
        shapes = (
            self._scene(record, image).shapes(np.arange(int(keep.sum())), self._placement(image)).of_kind(self.kind)
        )
        target = Target(
            boxes, labels, record.image_id, prepared.original_size, prepared.box_scale, record.path, **shapes
        )
        if self.tiling is not None:
            return tiled_sample(image, target, self.tiling, self.spatial_size, self.preserve_aspect_ratio)
        return prepared.image, target

    def _placement(self, image: Tensor) -> Placement:
        """Where a decoded image is in the network's input."""
        height, width = image.shape[-2:]
        outer = input_size(self.spatial_size, self.preserve_aspect_ratio)
        inner = letterbox_size((height, width), outer[0]) if self.preserve_aspect_ratio else outer
        return Placement(Window(0, 0, width, height), inner, outer)
