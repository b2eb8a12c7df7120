"""The Lightning module of a detector: steps, metrics, optimizer, and its place in a checkpoint."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.func import functional_call

from rtdetr_tool.checkpoints.class_rows import Classes
from rtdetr_tool.checkpoints.layout import TAO_MODEL
from rtdetr_tool.checkpoints.loading import LoadReport, load_into
from rtdetr_tool.checkpoints.metadata import KEY, build_metadata, check_against, section_of
from rtdetr_tool.data.classes import ClassMap
from rtdetr_tool.data.preprocess import draw_scale, resize_batch, to_float
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.metrics.build import build_evaluator
from rtdetr_tool.metrics.coco import CocoEvaluator
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.postprocess import postprocess
from rtdetr_tool.ops.structures import Batch, Detections
from rtdetr_tool.spec import ExperimentSpec, spec_to_dict
from rtdetr_tool.training.callbacks.ema import AVERAGED_KEY, RAW_KEY, average_of
from rtdetr_tool.training.distributed import broadcast_object, gather_objects
from rtdetr_tool.training.freezing import freeze, with_recipe
from rtdetr_tool.training.initial_weights import load_initial_weights
from rtdetr_tool.training.optim import StagedSchedule, build_optimizer, parameter_groups, vector_names
from rtdetr_tool.training.sharding import sharding_of
from rtdetr_tool.training.step_guard import StepGuard, answer
from rtdetr_tool.training.sync_batchnorm import synchronise_batch_norms
from rtdetr_tool.version import package_version

logger = logging.getLogger(__name__)

_NOT_THIS_RUN = (
    "A run resumes with the same model, classes and optimizer. For a new run, give another results_dir (-r); "
    "train.pretrained_model_path starts it from the weights of this file, class rows matched by name."
)
# Of `train`, `train.optim` and `model`: what decides which groups of parameters an optimizer has a state for.
_OPTIMIZER = ("optimizer", "freeze", "lr_layer_decay", "lr_component_decay", "lr_linear_proj_mult")
_FROZEN = ("train_backbone", "freeze_norm", "freeze_at")
PREFIX = "model.model."  # of the detector's tensors in a checkpoint


class DetectorModule(pl.LightningModule):
    """A detector with everything that Lightning needs to fit, validate, test and predict with it.

    `self.detector` is the network; in a checkpoint its names have TAO's prefix `model.model.`. Convolutions run in
    channels_last, which is faster on CPUs and GPUs alike.

    Args:
        pretrained: the run starts from a detector's weights that the spec does not name (`start_from`).
    """

    def __init__(self, spec: ExperimentSpec, class_map: ClassMap, pretrained: bool = False) -> None:
        super().__init__()
        if spec.dataset.num_classes is None:
            rows = spec.model.family.class_rows(class_map.num_classes)
            spec = replace(spec, dataset=replace(spec.dataset, num_classes=rows))
        asked, spec = spec, with_recipe(spec, pretrained)
        self.spec, self.class_map = spec, class_map
        detector = build_detector(
            spec.model, spec.dataset.num_classes, activation_checkpoint=spec.train.activation_checkpoint
        )
        logger.info("%s", freeze(detector, spec, asked))
        self._vectors = vector_names(detector)
        self.model = nn.ModuleDict({"model": detector.to(memory_format=torch.channels_last)})
        self.criterion = build_criterion(spec.model)
        self.logged_terms = self.criterion.main_terms  # of `compute_losses`, in every training step
        self.guard: StepGuard | None = None  # while training
        self.last_loss: Tensor | None = None  # the latest finite one, on the device; read without haste
        self.validated_epoch = -1
        self.metrics: dict[str, float | None] = {}  # of the latest validation or test; None: undefined, not logged
        self._undefined: set[str] = set()  # what a warning has named
        self._evaluator: CocoEvaluator | None = None
        self._raw_evaluator: CocoEvaluator | None = None  # of the weights being trained, beside their average
        self._raw_weights: dict[str, Tensor] = {}
        self._initialised = False
        self.run_seed = spec.train.seed if spec.train.seed >= 0 else int.from_bytes(os.urandom(4), "little")

    @property
    def detector(self) -> nn.Module:
        return self.model["model"]

    def forward(self, images: Tensor) -> Any:
        """Raw predictions for float images 0..1, [B, 3, H, W]."""
        return self.detector(images)

    def setup(self, stage: str) -> None:
        sharding = sharding_of(self.trainer.strategy)
        if stage == "fit" and sharding is not None:  # later the weights are in shards
            self.load_initial_weights()
        several = self.trainer.world_size > 1 and self.spec.train.sync_bn
        if several and self.trainer.accelerator.name() == "cpu":
            synchronise_batch_norms(self.detector)
        if sharding == "fsdp":  # it loads the optimizer's state of channels_last in disorder
            self.detector.to(memory_format=torch.contiguous_format)
        self.run_seed = broadcast_object(self.run_seed)

    def on_fit_start(self) -> None:
        """A fit that does not resume starts from the weights that the spec names; before, Lightning does not say."""
        if not self.trainer.ckpt_path:
            self.load_initial_weights()

    def load_initial_weights(self) -> None:
        if not self._initialised:
            self._initialised = True
            load_initial_weights(self.detector, self.spec, self.class_map.to_list())

    def start_from(self, weights: Mapping[str, Tensor], source: str, classes: Classes | None) -> LoadReport:
        """Start from these weights (by our names) instead of those that the spec names.

        `classes` are theirs, by whose names class rows are copied: empty where there are no names, None where the class
        rows are random.
        """
        self._initialised = True
        own = None if classes is None else self.class_map.to_list()
        return load_into(
            self.detector, weights, source=source, strict=False, classes=own, file_classes=classes or ()
        )

    # Steps

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device, non_blocking=True) if isinstance(batch, Batch) else batch

    def prepare_images(self, batch: Batch, multi_scale: bool) -> Tensor:
        """uint8 to float 0..1; in training the whole batch takes the size drawn for this optimizer step."""
        images = to_float(batch.images)
        scales = self.spec.dataset.augmentation.multi_scales
        if multi_scale and scales:
            images = resize_batch(images, draw_scale(scales, self.run_seed, self.global_step))
        return images.contiguous(memory_format=torch.channels_last)

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """All loss terms of a training batch; `loss` is their sum. Distillation overrides this."""
        predictions = self.detector(self.prepare_images(batch, multi_scale=True), batch.targets)
        return self.criterion(predictions, batch.targets)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._seed_step(batch_idx)
        self.guard.begin()
        losses = self.compute_losses(batch)
        loss = losses["loss"]
        finite = self.guard.judge(loss)  # a step that is not does not count in the means of the epoch
        self.last_loss = torch.where(finite, loss.detach(), 0.0 if self.last_loss is None else self.last_loss)
        size = finite * len(batch)
        self.log("train_loss", self.last_loss, on_step=True, on_epoch=True, batch_size=size, sync_dist=False)
        terms = {name: losses[name].detach() for name in self.logged_terms if name in losses}
        terms = {f"train_{name}": torch.where(finite, term, 0.0) for name, term in terms.items()}
        self.log_dict(terms, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        self.log("lr", self._main_rate(), on_step=True, on_epoch=False, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images = self.prepare_images(batch, multi_scale=False)
        predictions = self.detector(images)
        if self.spec.train.compute_val_loss:
            losses = self.criterion(predictions, batch.targets)
            terms = {f"val_{name}": losses[name] for name in ("loss", *self.criterion.main_terms) if name in losses}
            self.log_dict(terms, on_step=False, on_epoch=True, batch_size=len(batch), sync_dist=True)
        self._collect(batch, predictions)
        if self._raw_evaluator is not None:
            self._collect(batch, functional_call(self.detector, self._raw_weights, (images,)), self._raw_evaluator)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._collect(batch, self.detector(self.prepare_images(batch, multi_scale=False)))

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Detections]:
        predictions = self.detector(self.prepare_images(batch, multi_scale=False))
        return postprocess(predictions, batch.targets, self.spec.model.num_select)

    def _seed_step(self, batch_idx: int) -> None:
        """Make the random draws of a step (denoising, dropout) a function of seed, step, batch of the step and rank.

        A resumed run then draws what the unbroken one would have drawn, and ranks draw different noise.
        """
        part = batch_idx % self.spec.train.grad_accum_steps
        step = self.run_seed * 1_000_003 + self.global_step + part * 998_244_353
        torch.manual_seed((step * 1_009 + self.global_rank) % 2**63)

    def _main_rate(self) -> float:
        """The learning rate of everything but the backbone (of the backbone when nothing else is trained)."""
        groups = self.optimizers().param_groups
        return next((group["lr"] for group in groups if group["name"].startswith("main")), groups[0]["lr"])

    # Metrics

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation(self.trainer.val_dataloaders)

    def on_test_epoch_start(self) -> None:
        self._start_evaluation(self.trainer.test_dataloaders)

    def on_validation_epoch_end(self) -> None:
        self._finish_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._finish_evaluation("test")

    def _start_evaluation(self, loaders: Any) -> None:
        loader = loaders[0] if isinstance(loaders, Sequence) else loaders
        dataset = loader.dataset  # its ids may differ from those of the training data, not its class indices
        self._evaluator = build_evaluator(dataset, self.spec)
        average = average_of(self.trainer)
        aside = average.aside if average is not None else {}
        self._raw_evaluator = build_evaluator(dataset, self.spec) if aside else None
        self._raw_weights = {name.removeprefix(PREFIX): t for name, t in aside.items() if name.startswith(PREFIX)}

    def _collect(self, batch: Batch, predictions: Any, evaluator: CocoEvaluator | None = None) -> None:
        detections = postprocess(predictions, batch.targets, self.spec.model.num_select)
        (evaluator or self._evaluator).update([target.image_id for target in batch.targets], detections)

    def _finish_evaluation(self, phase: str) -> None:
        """Bring the detections of all ranks together and log the same numbers on each of them.

        A score without any ground truth is undefined. It is not logged, so that nothing takes a stand-in for a score.
        """
        numbers = self._numbers(self._evaluator, phase)
        if self._raw_evaluator is not None:
            numbers |= self._numbers(self._raw_evaluator, f"{phase}_raw")
        numbers = self.trainer.strategy.broadcast(numbers, 0)
        self.metrics = numbers
        self.validated_epoch = self.current_epoch
        self._warn_of_undefined(phase)
        defined = {name: value for name, value in numbers.items() if value is not None}
        self.log_dict(defined, rank_zero_only=False, sync_dist=False)
        self._evaluator = self._raw_evaluator = None
        self._raw_weights = {}

    def _warn_of_undefined(self, phase: str) -> None:
        """Name the scores that are undefined, once in a run."""
        names = [name for name, value in self.metrics.items() if value is None and name not in self._undefined]
        self._undefined.update(names)
        if names and self.global_rank == 0:
            logger.warning(
                "Undefined, because no object of the %s data counts for it: %s. It is not logged, chooses no best "
                "checkpoint and stops no run.",
                phase, ", ".join(names),
            )  # fmt: skip

    def _numbers(self, evaluator: CocoEvaluator, start: str) -> dict[str, float | None]:
        """The metrics of all ranks' detections, on rank 0; their names begin with `start`."""
        states = gather_objects([evaluator.state()])
        if self.global_rank != 0:
            return {}
        evaluator.merge(states[1:])
        result = evaluator.compute()
        best = result.best
        numbers = {"mAP": result.map, "mAP50": result.map50}
        numbers |= {"F1": best.f1, "precision": best.precision, "recall": best.recall, "threshold": best.threshold}
        if result.masks is not None:
            numbers |= {"segm_mAP": result.masks["AP"], "segm_mAP50": result.masks["AP50"]}
        if self.spec.train.log_per_class_metrics:
            numbers |= {f"AP/{row.name}": row.ap for row in result.per_class if row.ap is not None}
        return {f"{start}_{name}": value for name, value in numbers.items()}

    # Optimizer

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer trains."""
        optim = self.spec.train.optim
        return parameter_groups(
            self.detector,
            lr=optim.lr,
            lr_backbone=optim.lr_backbone,
            weight_decay=optim.weight_decay,
            linear_proj_names=self.spec.model.linear_proj_names,
            lr_linear_proj_mult=optim.lr_linear_proj_mult,
            lr_layer_decay=optim.lr_layer_decay,
            lr_component_decay=optim.lr_component_decay,
            vectors=self._vectors,
        )

    def configure_optimizers(self) -> Any:
        train, optim = self.spec.train, self.spec.train.optim
        groups = self.parameter_groups()
        fused = train.precision != "fp16" and self.device.type in ("cpu", "cuda")
        optimizer = build_optimizer(optim.optimizer, groups, momentum=optim.momentum, fused=fused)
        steps = self._steps()
        schedule = StagedSchedule(
            optimizer,
            kind=optim.lr_scheduler,
            decay=optim.lr_decay,
            milestones=optim.lr_steps,
            step_size=optim.lr_step_size,
            warmup_steps=optim.warmup_steps or int(optim.warmup_epochs * steps / train.num_epochs),
            total_steps=steps,
            min_factor=optim.lr_min_factor,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _steps(self) -> int:
        """Optimizer steps of the whole run; 0 where no schedule asks for them or no trainer knows."""
        optim = self.spec.train.optim
        asked = optim.lr_scheduler == "Cosine" or optim.warmup_epochs
        return int(self.trainer.estimated_stepping_batches) if asked and self._trainer is not None else 0

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip without Lightning's check, which refuses every fused optimizer although bf16 has no loss scale.

        FSDP's own method knows the norm of all shards; Lightning does not use it. DeepSpeed clips in its engine.
        """
        sharding = sharding_of(self.trainer.strategy)
        if sharding == "deepspeed":
            return
        by_norm = gradient_clip_val and gradient_clip_algorithm in (None, "norm")
        if sharding == "fsdp":
            norm = self.trainer.strategy.model.clip_grad_norm_(gradient_clip_val if by_norm else math.inf)
        else:
            parameters = [parameter for parameter in self.parameters() if parameter.grad is not None]
            norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
            if by_norm:
                nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        self.guard.watch_gradient(optimizer, norm)
        if not by_norm:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_epoch_start(self) -> None:
        schedules = self.lr_schedulers()
        for schedule in schedules if isinstance(schedules, list) else [schedules]:
            if isinstance(schedule, StagedSchedule):
                before = schedule.get_last_lr()
                schedule.start_epoch(self.current_epoch)
                if self.spec.train.verbose and before != schedule.get_last_lr():
                    logger.info("Learning rate from epoch %d on: %g", self.current_epoch, self._main_rate())

    # Steps that are not finite

    def on_train_start(self) -> None:
        self.guard = StepGuard(self.detector, self.criterion)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        answer(self.trainer, self, self.guard.settle(optimizer), self.spec.train.non_finite_loss)

    def on_train_epoch_end(self) -> None:
        answer(self.trainer, self, self.guard.settle_last(), self.spec.train.non_finite_loss)

    def on_train_end(self) -> None:
        self.guard.close()

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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the file is of this run's kind; to go on training, put the weights being trained in place."""
        meta = checkpoint.get(KEY)
        if not isinstance(meta, Mapping):
            raise CheckpointError("The checkpoint is not one of this tool's; give it as train.pretrained_model_path.")
        fitting = self.trainer.state.fn == "fit"
        source = str(self.trainer.ckpt_path or "the checkpoint")
        try:
            check_against(self.spec, meta, source=source, every_field=fitting, advice="")
            if not _same_classes(meta["classes"], self.class_map):
                raise CheckpointError(
                    f"The classes differ: the data has {_names(self.class_map.to_list())}, "
                    f"{source} has {_names(meta['classes'])}."
                )
            if not meta["classes"]:
                logger.warning(
                    "%s has no class names; its class rows were taken by position, as if its classes were %s.",
                    source, _names(self.class_map.to_list()),
                )  # fmt: skip
            if fitting:
                self._check_optimizer(checkpoint, meta, source)
        except CheckpointError as error:
            raise CheckpointError(f"{error}\n{_NOT_THIS_RUN}" if fitting else str(error)) from None
        if fitting:
            self.metrics = dict(meta.get("metrics") or {})
        if fitting and RAW_KEY in checkpoint:
            checkpoint[AVERAGED_KEY] = checkpoint["state_dict"]
            checkpoint["state_dict"] = checkpoint.pop(RAW_KEY)
        if sharding_of(self.trainer.strategy) is None:  # else the weights are in shards by now
            load_into(self, checkpoint["state_dict"], source="the checkpoint", what="run")


    def _check_optimizer(self, checkpoint: Mapping[str, Any], meta: Mapping[str, Any], source: str) -> None:
        """CheckpointError where the state of the file's optimizer is not for the one that the spec asks for."""
        flat = [
            {**section_of(spec, "model"), **section_of(spec, "train"), **section_of(spec, "train.optim")}
            for spec in (spec_to_dict(self.spec), section_of(meta, "spec"))
        ]
        changed = [name for name in (*_OPTIMIZER, *_FROZEN) if flat[0].get(name) != flat[1].get(name)]
        states = checkpoint.get("optimizer_states")
        if not states or not changed or sharding_of(self.trainer.strategy) is not None:
            return
        sizes = [len(group["params"]) for group in self.parameter_groups()]
        if "optimizer" in changed or sizes != [len(group["params"]) for group in states[0]["param_groups"]]:
            told = "; ".join(f"{name} is {flat[0].get(name)!r}, there {flat[1].get(name)!r}" for name in changed)
            raise CheckpointError(f"{source} holds the state of another optimizer (train, train.optim, model: {told}).")


def _same_classes(stored: Sequence[Mapping[str, Any]], own: ClassMap) -> bool:
    """Files of other programs may know the names without the category ids, or neither."""
    if any(entry.get("id") is not None for entry in stored):
        return list(stored) == own.to_list()
    known = {entry["index"]: entry["name"] for entry in stored}
    return not known or known == {entry.index: entry.name for entry in own.entries}


def _names(classes: Sequence[Mapping[str, Any]], limit: int = 8) -> str:
    names = [f"{entry.get('id', '?')}: {entry.get('name')}" for entry in classes]
    return "{" + ", ".join(names[:limit]) + (", ..." if len(names) > limit else "") + "}"
