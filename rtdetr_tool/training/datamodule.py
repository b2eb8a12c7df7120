"""The Lightning data module: datasets and loaders of a spec."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from rtdetr_tool.data.build import (
    build_eval_dataset,
    build_inference_dataset,
    build_loader,
    build_train_dataset,
    scoring_of,
)
from rtdetr_tool.data.build_sources import pixel_format_of
from rtdetr_tool.data.inspection import check_before_training
from rtdetr_tool.data.loader import DetectionLoader
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.structures import Batch
from rtdetr_tool.spec import ExperimentSpec
from rtdetr_tool.training.distributed import broadcast_object, rank, world_size

_SOURCES = {"val": "val_data_sources", "test": "test_data_sources", "predict": "infer_data_sources"}


class DetectionDataModule(pl.LightningDataModule):
    """Builds each dataset of a spec when it is first needed.

    The loaders distribute the images over the processes themselves (`use_distributed_sampler=False` in the trainer).
    """

    def __init__(self, spec: ExperimentSpec) -> None:
        super().__init__()
        self.spec = spec
        self._datasets: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        first = stage == "fit" and "train" not in self._datasets
        for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}[stage]:
            if split == "train" or getattr(self.spec.dataset, _SOURCES[split]):
                self.dataset(split)  # without a source, its loader raises the error
        if first:
            splits = [split for split in ("train", "val") if split in self._datasets]
            check_before_training({split: self._datasets[split] for split in splits}, scoring_of(self.spec))

    def dataset(self, split: str) -> Any:
        """The dataset of a split: `train`, `val`, `test` or `predict`."""
        if split not in self._datasets:
            self._datasets[split] = self._build(split)
        return self._datasets[split]

    def _build(self, split: str) -> Any:
        kind, pixels = self.spec.model.predicts, pixel_format_of(self.spec)
        if split == "train":
            return build_train_dataset(
                self.spec.dataset, self.spec.train.seed, kind, self.spec.train.num_epochs, pixels
            )
        if split == "predict":
            return build_inference_dataset(self.spec.dataset, pixels)
        known = self._datasets.get("train")
        class_map = known.class_map if known else None
        return build_eval_dataset(self.spec.dataset, split, class_map, kind, pixels=pixels)

    @property
    def class_map(self) -> ClassMap:
        """The classes of the training data, or of another split if only that is built."""
        for split in ("train", "val", "test"):
            if split in self._datasets:
                return self._class_map_of(split)
        return self._class_map_of("train")

    def _class_map_of(self, split: str) -> ClassMap:
        class_map: ClassMap = self.dataset(split).class_map
        return class_map

    @property
    def class_names(self) -> list[str]:
        """The names of `class_map`, by class index."""
        return [entry.name for entry in self.class_map.entries]

    def loader(self, split: str) -> DetectionLoader[Batch]:
        """A new loader of this process's share of a split."""
        dataset, training = self.dataset(split), split == "train"
        if training:  # with a negative seed, each process has drawn its own
            dataset.seed = broadcast_object(dataset.seed)
        loader = build_loader(dataset, self.spec.dataset, training=training, rank=rank(), world_size=world_size())
        if not training and world_size() > 1:
            _pad_indices(loader.sampler, len(dataset))
        return loader

    def train_dataloader(self) -> DetectionLoader[Batch]:
        loader = self.loader("train")
        trainer: Any = self.trainer  # which does not declare the attribute
        if trainer is not None:  # short epochs are logged too
            trainer.log_every_n_steps = max(1, min(trainer.log_every_n_steps, len(loader)))
        return loader

    def val_dataloader(self) -> DetectionLoader[Batch] | list[DetectionLoader[Batch]]:
        return self.loader("val") if self.spec.dataset.val_data_sources else []

    def test_dataloader(self) -> DetectionLoader[Batch]:
        return self.loader("test")

    def predict_dataloader(self) -> DetectionLoader[Batch]:
        return self.loader("predict")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device, non_blocking=True) if isinstance(batch, Batch) else batch


def _pad_indices(sampler: Any, count: int) -> None:
    """Give all processes the same number of images, so that none waits for another forever.

    Some processes may repeat their first image. Metrics count it once.
    """
    share = -(-count // world_size())
    indices = list(sampler.indices)
    sampler.indices = indices + [indices[0] if indices else 0] * (share - len(indices))
