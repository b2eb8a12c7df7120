"""Propose a training spec for a dataset: each value with its reason."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rtdetr_tool.catalog import KEYPOINTS
from rtdetr_tool.data.build import build_eval_dataset, build_train_dataset
from rtdetr_tool.data.dataset import DetectionDataset
from rtdetr_tool.data.statistics import Statistics, measure
from rtdetr_tool.errors import DataError, MissingSplit
from rtdetr_tool.families import all_families
from rtdetr_tool.spec import DatasetSpec

_STRIDE = 32  # sizes are multiples of it; also the step between the sizes of multi-scale training
_SMALLEST, _ON_CPU, _USUAL, _LARGEST = 320, 448, 640, 1280  # pixels
_VISIBLE = 8.0  # pixels: one cell of the finest feature map
_BATCH = 16  # images per optimizer step of the reference recipe
_STEPS = 12_000  # optimizer steps after which fine-tuned detectors gain little
_EPOCHS = (12, 100)
_COCO_LIMIT, _QUERIES = 100, 300


@dataclass(frozen=True)
class Proposal:
    """One value of a spec, by its dotted name, and why it is proposed."""

    name: str
    value: Any
    reason: str = ""


@dataclass(frozen=True)
class Inspected:
    """What a proposal depends on."""

    place: str
    classes: int
    has_test: bool
    train: Statistics
    most_objects_of_a_class: int  # in one image
    gpu_gib: float | None  # memory of the first GPU; None without one
    cores: int
    keypoints: int = 0  # training objects with keypoints

    @property
    def detector(self) -> str:
        return "an RF-DETR with keypoints" if self.keypoints else "an RT-DETR"


def inspect(place: str) -> Inspected:
    """Read the annotations of the dataset in a folder (or the YAML file of a YOLO dataset).

    Raises:
        DataError: it is no dataset in a supported format, or it has no training or validation split.
    """
    sources: dict[str, Any] = {
        f"{split}_data_sources": {"dataset_dir": place, "split": split} for split in ("val", "test")
    }
    train_sources = [{"dataset_dir": place, "split": "train"}]
    spec = DatasetSpec(dataset_dir=place, num_classes=None, train_data_sources=train_sources, **sources)
    train = _with_keypoints(spec) or build_train_dataset(spec)
    try:
        build_eval_dataset(spec, "val", train.class_map)
    except MissingSplit as error:
        raise DataError(
            f"{error} Training selects its best checkpoint on validation images. Move some of the training images "
            "into a validation split."
        ) from None
    try:
        build_eval_dataset(spec, "test", train.class_map)
        has_test = True
    except MissingSplit:
        has_test = False
    gpu = torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else None
    return Inspected(
        place, len(train.class_map.entries), has_test, measure(train.records), _most_of_a_class(train), gpu,
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        _with_keypoints_count(train),
    )  # fmt: skip


def _with_keypoints(spec: DatasetSpec) -> DetectionDataset | None:
    """The training data with keypoints; None if it has none, or its format cannot have any."""
    try:
        dataset = build_train_dataset(spec, kind=KEYPOINTS)
    except DataError:
        return None
    return dataset if _with_keypoints_count(dataset) else None


def _with_keypoints_count(dataset: DetectionDataset) -> int:
    """The number of objects with keypoints."""
    poses = (record.keypoints for record in dataset.records if record.keypoints is not None)
    return sum(int((pose[..., 2] > 0).any(axis=1).sum()) for pose in poses)


def _most_of_a_class(dataset: DetectionDataset) -> int:
    counts = (np.bincount(record.labels[~record.iscrowd]) for record in dataset.records)
    return max((int(count.max()) for count in counts if len(count)), default=0)


def propose(inspected: Inspected, results: str) -> list[Proposal]:
    """The values that differ from the defaults, in the order of the sections."""
    images = len(inspected.train.objects_per_image)
    on_gpu = inspected.gpu_gib is not None
    model = _keypoint_model(inspected) if inspected.keypoints else _model(inspected, on_gpu)
    proposals = [Proposal("results_dir", results), *model]
    proposals += [
        Proposal("dataset.dataset_dir", inspected.place),
        Proposal("dataset.batch_size", "auto", "as many images as memory allows; train.effective_batch_size per step"),
        Proposal("dataset.workers", max(1, min(8, inspected.cores - 1)), f"{inspected.cores} CPU cores"),
        *([] if inspected.keypoints else _sizes(inspected, on_gpu)),
    ]
    epochs = min(max(math.ceil(_STEPS * _BATCH / max(1, images)), _EPOCHS[0]), _EPOCHS[1])
    every = max(1, epochs // 20)
    proposals += [
        Proposal("train.num_epochs", epochs, _epochs_reason(images, epochs)),
        Proposal("train.effective_batch_size", _BATCH, "as in the reference recipe, whatever fits into memory"),
        Proposal("train.validation_interval", every),
        Proposal("train.checkpoint_interval", every),
    ]
    if inspected.keypoints:
        weights = "rf-detr-keypoint-preview-xlarge.pth"
        reason = "trained on COCO's persons, downloaded once; null = random weights, needs many more epochs"
        proposals.append(Proposal("train.pretrained_model_path", weights, reason))
    else:
        proposals += [
            Proposal("train.enable_ema", True, "averaged weights score higher; part of the reference recipe"),
            Proposal("train.precision", "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"),
        ]
    most = inspected.most_objects_of_a_class
    proposals += [
        Proposal("evaluate.checkpoint", f"{results}/train/rtdetr_model_best.pth"),
        Proposal("evaluate.batch_size", 8),
    ]
    if most > _COCO_LIMIT:
        reason = f"an image has {most} objects of a class; COCO's limit of {_COCO_LIMIT} would cap its score"
        proposals.append(Proposal("evaluate.max_dets", _rounded(most, 100), reason))
    return proposals


def _sizes(inspected: Inspected, on_gpu: bool) -> list[Proposal]:
    size, why = _resolution(inspected.train, _USUAL if on_gpu else _ON_CPU)
    scales = list(range(size - 3 * _STRIDE, size + 3 * _STRIDE + 1, _STRIDE))
    return [
        Proposal("dataset.augmentation.train_spatial_size", [size, size], why),
        Proposal("dataset.augmentation.eval_spatial_size", [size, size]),
        Proposal("dataset.augmentation.multi_scales", scales, "one is drawn for each step"),
    ]


def _keypoint_model(inspected: Inspected) -> list[Proposal]:
    """The family that predicts keypoints, at its own size and with its own recipe."""
    family = next(family for family in all_families() if KEYPOINTS in family.proposals)
    objects = int(inspected.train.objects_per_image.sum())
    reason = (
        f"{inspected.keypoints:,} of {objects:,} training objects have keypoints, which only {family.title} predicts"
    )
    proposals = family.proposals[KEYPOINTS].items()
    return [
        Proposal("model.arch", family.name, reason),
        *(Proposal(name, value, "use another one to train boxes only") for name, value in proposals),
    ]


def _model(inspected: Inspected, on_gpu: bool) -> list[Proposal]:
    backbone = "resnet_50" if on_gpu else "resnet_18"
    device = (
        f"a GPU with {inspected.gpu_gib:.0f} GiB" if inspected.gpu_gib is not None else "no GPU: the smallest network"
    )
    proposals = [
        Proposal("model.backbone", backbone, device),
        Proposal(
            "model.pretrained_backbone_path",
            "timm",
            "ImageNet weights, downloaded once; null = random weights, needs more epochs",
        ),
    ]
    objects = int(inspected.train.objects_per_image.max(initial=0))
    if objects * 1.5 > _QUERIES:
        queries = _rounded(objects * 1.5, 100)
        reason = f"an image has {objects} objects"
        proposals += [Proposal("model.num_queries", queries, reason), Proposal("model.num_select", queries, reason)]
    return proposals


def _resolution(statistics: Statistics, usual: int) -> tuple[int, str]:
    """The input size: that of the images up to the usual one, larger if small objects would disappear."""
    sizes, boxes = statistics.image_sizes, statistics.box_sizes
    if not len(sizes):
        return usual, "the usual size; the sizes of the images are unknown"
    longer = float(np.median(sizes.max(axis=1)))
    size = int(min(max(_rounded(longer, _STRIDE), _SMALLEST), usual))
    reason = f"the longer side of the images is {longer:.0f} px (median)"
    if usual == _ON_CPU < longer:
        reason += f"; without a GPU, {_USUAL} px would take twice the time"
    if len(boxes) and (small := float(np.quantile(boxes, 0.1))) > 0:
        needed = _rounded(_VISIBLE / small, _STRIDE)
        if needed > size:
            proposed = int(min(needed, _LARGEST, max(size, _rounded(longer, _STRIDE))))
            if proposed > size:
                return proposed, f"a tenth of the objects would be below {_VISIBLE:.0f} px at {size} px"
            reason += f"; a tenth of the objects are below {small * size:.0f} px, consider tiles or larger images"
    return size, reason


def _rounded(value: float, step: int) -> int:
    return math.ceil(value / step) * step


def _epochs_reason(images: int, epochs: int) -> str:
    steps = epochs * math.ceil(images / _BATCH)
    return f"{images:,} training images: {steps:,} steps of {_BATCH}"


def spec_yaml(proposals: Sequence[Proposal], title: str) -> str:
    """A commented spec; values are JSON, which is YAML."""
    lines, opened = [f"# {title}"], list[str]()
    for proposal in proposals:
        *path, leaf = proposal.name.split(".")
        shared = sum(path[: i + 1] == opened[: i + 1] for i in range(len(path)))
        lines += [f"{'  ' * depth}{path[depth]}:" for depth in range(shared, len(path))]
        opened = path
        text = f"{'  ' * len(path)}{leaf}: {json.dumps(proposal.value, ensure_ascii=False)}"
        lines.append(f"{text}  # {proposal.reason}" if proposal.reason else text)
    return "\n".join(lines) + "\n"
