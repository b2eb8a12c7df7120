"""The Lightning module of a detector: its steps, and what it adds to checkpoints."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn

from rtdetr_tool.checkpoints.class_rows import Classes
from rtdetr_tool.checkpoints.identify import TAO_MODEL
from rtdetr_tool.checkpoints.loading import LoadReport, load_into
from rtdetr_tool.checkpoints.metadata import KEY, build_metadata
from rtdetr_tool.data.preprocess import draw_scale, resize_batch, to_float
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.batch_norm import count_batch, count_together
from rtdetr_tool.ops.classes import ClassMap
from rtdetr_tool.ops.onednn import use_onednn
from rtdetr_tool.ops.postprocess import postprocess
from rtdetr_tool.ops.recompute import recomputing
from rtdetr_tool.ops.structures import Batch, Detections, Predictions, Target
from rtdetr_tool.spec import ExperimentSpec, spec_to_dict
from rtdetr_tool.training.callbacks.ema import AVERAGED_KEY, RAW_KEY
from rtdetr_tool.training.checkpointing import SafeCheckpointIO
from rtdetr_tool.training.class_weights import set_class_weights
from rtdetr_tool.training.compilation import compile_network
from rtdetr_tool.training.distributed import broadcast_object, check_equal
from rtdetr_tool.training.freezing import freeze, resolve_freezing
from rtdetr_tool.training.initial_weights import load_initial_weights
from rtdetr_tool.training.optim import vector_names
from rtdetr_tool.training.optimized_module import OptimizedModule
from rtdetr_tool.training.resume_checks import check_checkpoint
from rtdetr_tool.training.sharding import sharding_of
from rtdetr_tool.training.spec_of_data import with_classes_of
from rtdetr_tool.training.step_guard import guard_of
from rtdetr_tool.training.supernet import Supernet, with_all_gradients
from rtdetr_tool.training.sync_batchnorm import sync_batch_norms
from rtdetr_tool.version import package_version

logger = logging.getLogger(__name__)


class StepOutput(TypedDict):
    """What validation and test steps return."""

    results: list[Detections]  # of each image
    targets: list[Target]


class DetectorModule(OptimizedModule):
    """A detector with everything that Lightning needs to fit, validate, test and predict with it.

    `self.detector` is the network. In a checkpoint, its tensors have TAO's prefix `model.model.`. Convolutions run in
    channels_last, which is faster on both CPUs and GPUs.

    Args:
        pretrained: the run starts from weights that are not in the spec (`start_from`).
    """

    def __init__(self, spec: ExperimentSpec, class_map: ClassMap, pretrained: bool = False) -> None:
        spec = with_classes_of(spec, class_map)
        resolved = resolve_freezing(spec, pretrained)
        super().__init__(resolved)
        num_classes = cast(int, spec.dataset.num_classes)
        detector = build_detector(spec.model, num_classes, activation_checkpoint=spec.train.activation_checkpoint)
        logger.info("%s", freeze(detector, resolved, spec))
        count_together(detector)
        use_onednn(detector)
        self.class_map = class_map
        self.vectors = vector_names(detector)
        self.model = nn.ModuleDict({"model": detector.to(memory_format=torch.channels_last)})
        self.criterion = build_criterion(spec.model)
        set_class_weights(self.criterion, spec.train.class_weights, class_map, num_classes)
        self.supernet = Supernet(spec) if spec.train.supernet.enabled else None
        self.logged_terms = self.criterion.main_terms  # the terms of `compute_losses` that training steps log
        self.last_loss: Tensor | None = None  # the latest finite loss, on the device
        self._weights_loaded = False
        self.run_seed = spec.train.seed if spec.train.seed >= 0 else int.from_bytes(os.urandom(4), "little")

    def forward(self, images: Tensor) -> Predictions:
        """Raw predictions for float images 0..1, [B, 3, H, W]."""
        predictions: Predictions = self.detector(images)
        return predictions

    def setup(self, stage: str) -> None:
        sharding = sharding_of(self.trainer.strategy)
        if stage == "fit" and sharding is not None:  # later, the weights are sharded
            self.load_initial_weights()
        several = self.trainer.world_size > 1 and self.spec.train.sync_bn
        if several and self.trainer.accelerator.name() == "cpu":
            sync_batch_norms(self.detector)
        if sharding == "fsdp":  # FSDP restores optimizer state in the wrong order for channels_last
            self.detector.to(memory_format=torch.contiguous_format)
        self.run_seed = broadcast_object(self.run_seed)
        if stage == "fit":  # each process has resolved `auto` by itself; different sizes would hang
            check_equal({"dataset.batch_size": self.spec.dataset.batch_size})
        if stage == "fit" and self.spec.train.compile:
            compile_network(self.detector)

    def on_fit_start(self) -> None:
        """Load the initial weights unless the run resumes, which Lightning only knows from here on."""
        if not self.trainer.ckpt_path:
            self.load_initial_weights()

    def load_initial_weights(self) -> None:
        if not self._weights_loaded:
            self._weights_loaded = True
            load_initial_weights(self.detector, self.spec, self.class_map.to_list())

    def start_from(self, weights: Mapping[str, Tensor], source: str, classes: Classes | None) -> LoadReport:
        """Start from these weights instead of those in the spec.

        Args:
            weights: tensors by the detector's own names.
            classes: the classes of these weights, to copy class rows by name. Empty: the names are unknown. None: the
                class rows are random.
        """
        self._weights_loaded = True
        target_classes = None if classes is None else self.class_map.to_list()
        report = load_into(
            self.detector, weights, source=source, strict=False, classes=target_classes, file_classes=classes or ()
        )
        self.detector.forget_data()
        return report

    # Steps

    def prepare_images(self, batch: Batch, multi_scale: bool) -> Tensor:
        """uint8 images as floats 0..1. With `multi_scale`, resized to the size drawn for this optimizer step."""
        images, size = to_float(batch.images), self.draw_pass(multi_scale)
        if size is not None:
            images = resize_batch(images, size)
        return images.contiguous(memory_format=torch.channels_last)

    def draw_pass(self, drawn: bool) -> tuple[int, int] | None:
        """Let the detector run as the sub-detector drawn for this optimizer step, or else as a whole; the size of its
        images, None for that of the batch."""
        if self.supernet is None:
            return self._draw_scale() if drawn and self.spec.dataset.augmentation.multi_scales else None
        if not drawn:
            self.detector.run_as()
            return None
        sub = self.supernet.draw(self.run_seed, self.global_step)
        self.detector.run_as(**sub.numbers)
        return sub.size

    def _draw_scale(self) -> tuple[int, int]:
        """The size in multi-scale training; that of validation in the last epochs (`no_aug_epochs`)."""
        augmentation = self.spec.dataset.augmentation
        if self.current_epoch >= self.spec.train.num_epochs - augmentation.no_aug_epochs:
            height, width = augmentation.eval_spatial_size
            return height, width
        return draw_scale(augmentation.multi_scales, self.run_seed, self.global_step)

    def predict_targets(self, images: Tensor, targets: Sequence[Target]) -> Predictions:
        """The predictions of a training step."""
        with recomputing(self.spec.train.recompute_norms):
            return cast(Predictions, self.detector(images, targets))

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """All loss terms of a training batch; `loss` is their sum. Distillation overrides this."""
        predictions = self.predict_targets(self.prepare_images(batch, multi_scale=True), batch.targets)
        losses: dict[str, Tensor] = self.criterion(predictions, batch.targets)
        return losses if self.supernet is None else with_all_gradients(losses, self.detector)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._seed_step(batch_idx)
        guard = guard_of(self)
        guard.begin()
        losses = self.compute_losses(batch)
        count_batch(self.detector)
        loss = losses["loss"]
        finite = guard.check_loss(loss)  # epoch means ignore losses that are not finite
        self.last_loss = torch.where(finite, loss.detach(), 0.0 if self.last_loss is None else self.last_loss)
        size = cast(int, finite * len(batch))  # a tensor, so that the host does not wait for it
        self.log("train/loss_step", self.last_loss, on_step=True, on_epoch=False, batch_size=size)
        terms = {name: losses[name].detach() for name in self.logged_terms if name in losses}
        means = {name: torch.where(finite, term, 0.0) for name, term in terms.items()}
        self.log_losses("train", {**means, "loss": self.last_loss}, self.logged_terms, size)
        rate = torch.full((), self._main_rate(), device=self.device)  # Lightning would copy a number, and wait for it
        self.log("train/lr", rate, on_step=True, on_epoch=False, batch_size=len(batch))
        return loss

    def on_train_end(self) -> None:
        if self.supernet is not None:
            self.detector.run_as()
        super().on_train_end()

    def validation_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """Score a batch. Callbacks get its detections and targets."""
        images = self.prepare_images(batch, multi_scale=False)
        predictions = self.detector(images)
        if self.spec.train.compute_val_loss:
            self.log_losses("val", self.criterion(predictions, batch.targets), self.criterion.main_terms, len(batch))
        detections = self.scores.add(batch, predictions)
        self.scores.add_raw(batch, self.detector, images)
        return {"results": detections, "targets": batch.targets}

    def test_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        predictions = self.detector(self.prepare_images(batch, multi_scale=False))
        if self.spec.train.compute_test_loss:
            self.log_losses("test", self.criterion(predictions, batch.targets), self.criterion.main_terms, len(batch))
        return {"results": self.scores.add(batch, predictions), "targets": batch.targets}

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Detections]:
        predictions = self.detector(self.prepare_images(batch, multi_scale=False))
        return postprocess(predictions, batch.targets, self.spec.model.num_select)

    def _seed_step(self, batch_idx: int) -> None:
        """Make the random numbers of a step (denoising, dropout) depend only on seed, step, accumulated batch and rank.

        A resumed run then draws the same numbers as an uninterrupted one, and ranks draw different noise.
        """
        part = batch_idx % self.spec.train.grad_accum_steps
        step = self.run_seed * 1_000_003 + self.global_step + part * 998_244_353
        torch.manual_seed((step * 1_009 + self.global_rank) % 2**63)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(TAO_MODEL)
        checkpoint[KEY] = build_metadata(
            package_version(),
            spec_to_dict(self.spec),
            self.class_map.to_list(),
            weights="ema" if RAW_KEY in checkpoint else "raw",
            metrics=self.metrics,
        )

    def check_resume(self, path: Path) -> None:
        """Raise CheckpointError if the run cannot resume from this file."""
        checkpoint = SafeCheckpointIO().load_checkpoint(path)
        sizes = [len(group["params"]) for group in self.parameter_groups()]
        check_checkpoint(checkpoint, self.spec, self.class_map, str(path), sizes, resuming=True)
        logger.info("The run would resume from %s", path)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits this run. Training continues from its trained, not its averaged weights."""
        resuming = self.trainer.state.fn == "fit"
        sharded = sharding_of(self.trainer.strategy) is not None
        sizes = None if sharded or not resuming else [len(group["params"]) for group in self.parameter_groups()]
        source = str(self.trainer.ckpt_path or "the checkpoint")
        meta = check_checkpoint(checkpoint, self.spec, self.class_map, source, sizes, resuming)
        if resuming:
            self.metrics = dict(meta.get("metrics") or {})
        if resuming and RAW_KEY in checkpoint:
            checkpoint[AVERAGED_KEY] = checkpoint["state_dict"]
            checkpoint["state_dict"] = checkpoint.pop(RAW_KEY)
        if not sharded:  # otherwise the weights are sharded by now
            load_into(self, checkpoint["state_dict"], source="the checkpoint", what="run")
