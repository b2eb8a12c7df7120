"""Labelled images as a torch `Dataset`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from rtdetr_tool.data.classes import ClassMap
from rtdetr_tool.data.coco import coco_ground_truth
from rtdetr_tool.data.collate import FailedImage
from rtdetr_tool.data.faults import check_folder
from rtdetr_tool.data.preprocess import decode_image, input_size, letterbox_size, prepare_image
from rtdetr_tool.data.records import ImageRecord
from rtdetr_tool.data.repairs import Repairs
from rtdetr_tool.data.transforms import to_relative
from rtdetr_tool.data.window import Window, render_masks
from rtdetr_tool.errors import DataError, MachineError
from rtdetr_tool.ops.masks import decode
from rtdetr_tool.ops.structures import Target

logger = logging.getLogger(__name__)

Sample = tuple[Tensor, Target]
BOXES_TO_JUDGE = 200  # that augmentation was given, or as many as there are
LEAST_KEPT = 0.1  # share of the boxes below which augmentation has dropped nearly all
_SUBSTITUTES = 20  # bad images in a row before a training run gives up


class DetectionDataset(Dataset):
    """Base of the two below: records, classes, and the reading of one image.

    In a loader's worker process a `DataError` or `MachineError` comes back as a `FailedImage`, which the loader raises
    in the main process.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        class_map: ClassMap,
        repairs: Repairs | None = None,
        with_masks: bool = False,
    ) -> None:
        if not len(records):
            raise DataError("The data set has no images.")
        self.records, self.class_map = records, class_map
        self.repairs = repairs or Repairs()
        self.with_masks = with_masks  # whether the records were read with them, and targets have them

    def __len__(self) -> int:
        return len(self.records)

    def coco_ground_truth(self) -> dict[str, Any]:
        """All records as a plain COCO dict, see `data.coco.coco_ground_truth`."""
        return coco_ground_truth(self.records, self.class_map)

    def __getitem__(self, index: Any) -> Sample | FailedImage:
        try:
            return self.sample(index)
        except (DataError, MachineError) as error:
            if get_worker_info() is None:
                raise
            return FailedImage("", error)

    def sample(self, index: Any) -> Sample:
        raise NotImplementedError

    def _decode(self, record: ImageRecord) -> Tensor:
        try:
            return decode_image(record.path, (record.width, record.height) if record.width else None)
        except DataError:
            check_folder(record.path)
            raise

    def _masks(self, record: ImageRecord, keep: np.ndarray, image: Tensor) -> np.ndarray | None:
        """[N, H, W] of 0 and 1 of the objects to `keep`; None where masks were not read."""
        if not self.with_masks:
            return None
        height, width = image.shape[-2:]
        chosen = [decode(record.masks[index], height, width) for index in np.flatnonzero(keep)]
        return np.stack(chosen) if chosen else np.zeros((0, height, width), np.uint8)


class TrainDataset(DetectionDataset):
    """Augmented images. Sample i of epoch e is a function of (seed, e, i) alone.

    Index it with `i` (the epoch is then that of `set_epoch`, which reaches running workers too) or with `(e, i)`.
    Crowd regions are no objects to learn and are left out of the targets.

    Args:
        transform: (image, xyxy boxes, labels, generator) -> (image, cxcywh 0..1 boxes, labels).
        on_bad_image: `skip` names an image that cannot be read once and takes another one, which depends on
            (seed, e, i) too; `error` raises.
        max_bad: how many different images may be replaced; one more is a `DataError`. None: any number.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        class_map: ClassMap,
        transform: Callable[..., tuple[Tensor, Tensor, Tensor]],
        seed: int = 0,
        on_bad_image: str = "skip",
        repairs: Repairs | None = None,
        with_masks: bool = False,
        max_bad: int | None = None,
    ) -> None:
        super().__init__(records, class_map, repairs, with_masks)
        self.transform, self.max_bad = transform, max_bad
        self.seed = seed if seed >= 0 else int.from_bytes(os.urandom(4), "little")
        self.on_bad_image = on_bad_image
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._reported = torch.zeros(len(records), dtype=torch.bool).share_memory_()
        self._boxes = torch.zeros(2, dtype=torch.int64).share_memory_()  # before and after augmentation
        self._boxes_judged = torch.zeros(1, dtype=torch.bool).share_memory_()
        self._enough_boxes = max(1, min(BOXES_TO_JUDGE, sum(len(record) for record in records)))

    def set_epoch(self, epoch: int) -> None:
        self._epoch[0] = epoch

    def sample(self, index: int | tuple[int, int]) -> Sample:
        epoch, index = index if isinstance(index, tuple) else (int(self._epoch[0]), index)
        index = range(len(self))[index]
        rng = np.random.default_rng([self.seed, epoch, index])
        chosen = index
        for _ in range(_SUBSTITUTES):
            record = self.records[chosen]
            try:
                image = self._decode(record)
            except DataError as error:
                if self.on_bad_image == "error":
                    raise
                self._report(chosen, error)
                chosen = int(rng.integers(len(self)))
                continue
            return self._augment(image, record, rng)
        raise DataError(
            f"{_SUBSTITUTES} images in a row could not be read, the last one {self.records[chosen].path}. "
            "Check the image directory of dataset.train_data_sources."
        )

    def _augment(self, image: Tensor, record: ImageRecord, rng: np.random.Generator) -> Sample:
        keep = ~record.iscrowd
        boxes, labels = torch.from_numpy(record.boxes[keep]), torch.from_numpy(record.labels[keep])
        height, width = image.shape[-2:]
        masks = self._masks(record, keep, image)
        if masks is None:
            image, boxes, labels = self.transform(image, boxes, labels, rng)
        else:
            image, boxes, labels, masks = self.transform.with_masks(image, boxes, labels, masks, rng)
        self._count_boxes(int(keep.sum()), len(boxes))
        # The augmented picture has no way back to the original's pixels; its own size is the best that can be said.
        scale = (float(image.shape[-1]), float(image.shape[-2]))
        return image, Target(boxes, labels, record.image_id, (height, width), scale, record.path, masks)

    def _count_boxes(self, given: int, kept: int) -> None:
        """Warn once where augmentation leaves hardly any box."""
        self._boxes += torch.tensor([given, kept])
        before, after = self._boxes.tolist()
        if before >= self._enough_boxes and not self._boxes_judged:
            self._boxes_judged[0] = True
            if after < LEAST_KEPT * before:
                logger.warning(
                    "Augmentation keeps only %d of the first %d boxes: the others are narrower than one pixel of the "
                    "network's input or cut away, so there is hardly anything to learn. Check the unit of the boxes "
                    "and dataset.augmentation.train_spatial_size.", after, before,
                )  # fmt: skip

    def _report(self, index: int, error: DataError) -> None:
        if bool(self._reported[index]):
            return
        self._reported[index] = True
        logger.warning("%s Another image is taken in its place (dataset.on_bad_image: skip).", error)
        bad = int(self._reported.sum())
        if self.max_bad is not None and bad > self.max_bad:
            raise DataError(
                f"{bad} different training images could not be read, the last one {self.records[index].path}: more "
                f"than the {self.max_bad} that may be replaced (dataset.max_bad_share). `rtdetr validate_data` names "
                "them all; repair or remove them, or raise dataset.max_bad_share."
            )


class EvalDataset(DetectionDataset):
    """Images as evaluation and inference see them, with their ground truth; an unreadable image is always an error.

    Targets hold the objects without the crowd regions (they are for the validation loss); `coco_ground_truth` has both.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        class_map: ClassMap,
        spatial_size: Sequence[int],
        preserve_aspect_ratio: bool = False,
        repairs: Repairs | None = None,
        with_masks: bool = False,
    ) -> None:
        super().__init__(records, class_map, repairs, with_masks)
        self.spatial_size, self.preserve_aspect_ratio = tuple(spatial_size), preserve_aspect_ratio

    def sample_of(self, count: int, seed: int) -> EvalDataset:
        """A data set of `count` of the images, drawn with `seed` and kept in their order."""
        chosen = sorted(np.random.default_rng(seed).choice(len(self), count, replace=False).tolist())
        records = [self.records[index] for index in chosen]
        return EvalDataset(
            records, self.class_map, self.spatial_size, self.preserve_aspect_ratio, with_masks=self.with_masks
        )

    def sample(self, index: int) -> Sample:
        record = self.records[index]
        image, keep = self._decode(record), ~record.iscrowd
        prepared = prepare_image(image, self.spatial_size, self.preserve_aspect_ratio)
        across, down = prepared.box_scale
        boxes = to_relative(torch.from_numpy(record.boxes[keep]), (down, across))
        labels = torch.from_numpy(record.labels[keep])
        return prepared.image, Target(
            boxes, labels, record.image_id, prepared.original_size, prepared.box_scale, record.path,
            self._target_masks(record, keep, image),
        )  # fmt: skip

    def _target_masks(self, record: ImageRecord, keep: np.ndarray, image: Tensor) -> Tensor | None:
        masks = self._masks(record, keep, image)
        if masks is None:
            return None
        height, width = image.shape[-2:]
        outer = input_size(self.spatial_size, self.preserve_aspect_ratio)
        inner = letterbox_size((height, width), outer[0]) if self.preserve_aspect_ratio else outer
        return render_masks(masks, Window(0, 0, width, height), inner, outer, mirrored=False)
