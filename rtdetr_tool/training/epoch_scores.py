"""Score the detections of validation and test epochs, over all processes and for one or two sets of weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.func import functional_call

from rtdetr_tool.metrics.build import build_evaluator
from rtdetr_tool.metrics.coco import CocoEvaluator
from rtdetr_tool.metrics.result import CocoResult
from rtdetr_tool.ops.postprocess import detection_rows, split_rows
from rtdetr_tool.ops.structures import Batch, Detections, Predictions
from rtdetr_tool.spec import ExperimentSpec
from rtdetr_tool.spec.metric_names import MAIN_SCORES, SCORES, averaged_name, tao_name
from rtdetr_tool.training.callbacks.ema import average_of
from rtdetr_tool.training.distributed import gather_objects, rank

logger = logging.getLogger(__name__)

PREFIX = "model.model."  # of the names of the detector's tensors in a checkpoint
_STATS = ("AP", "AP50", "AP75")  # keys of `CocoResult.stats`, in the order of `SCORES`
_AVERAGED = {name for names in SCORES.values() for name in names}  # scores that may also be those of averaged weights


class Evaluation(NamedTuple):
    """The detections of an epoch and their metrics."""

    evaluator: CocoEvaluator
    result: CocoResult


class EpochScores:
    """Collects the detections of one epoch and computes its metrics.

    Args:
        dataset: what is scored. Its image and category ids may differ from the training data's, its class indices not.
        raw_weights: the trained weights of the detector if its averaged weights are in place and both are to be scored.
        averaged: the detector has its averaged weights.
    """

    def __init__(
        self,
        dataset: Any,
        spec: ExperimentSpec,
        raw_weights: Mapping[str, Tensor] | None = None,
        averaged: bool = False,
    ) -> None:
        self.spec = spec
        self._averaged = averaged
        self._raw_weights = dict(raw_weights or {})
        self._evaluator = build_evaluator(dataset, spec)
        self._raw_evaluator = build_evaluator(dataset, spec) if self._raw_weights else None
        self._latest: Evaluation | None = None
        self.evaluation: Evaluation | None = None  # after `compute`, in the first process

    def add(self, batch: Batch, predictions: Predictions) -> list[Detections]:
        """Score predictions. Returns their detections, on the CPU."""
        return self._add(self._evaluator, batch, predictions)

    def add_raw(self, batch: Batch, detector: nn.Module, images: Tensor) -> None:
        """Predict with the trained weights as well, if they are to be scored."""
        if self._raw_evaluator is not None:
            self._add(self._raw_evaluator, batch, functional_call(detector, self._raw_weights, (images,)))

    def _add(self, evaluator: CocoEvaluator, batch: Batch, predictions: Predictions) -> list[Detections]:
        rows = detection_rows(predictions, batch.targets, self.spec.model.num_select)
        detections = split_rows(rows.cpu(), predictions, batch.targets)
        evaluator.update([target.image_id for target in batch.targets], detections)
        return detections

    def compute(self, trainer: Trainer, phase: str) -> dict[str, float | None]:
        """The metrics over all processes, the same on each. A score without ground truth is None (undefined).

        If two sets of weights are scored, the scores of the averaged weights have the prefix `ema_`. If only the
        averaged weights are, their mAP and mAR have both names.
        """
        scores = self._compute(self._evaluator, phase)
        self.evaluation = self._latest
        if self._raw_evaluator is not None:
            averaged = {averaged_name(name): value for name, value in scores.items()}
            scores = self._compute(self._raw_evaluator, phase) | averaged
        elif self._averaged:
            names = [name for name in scores if name.partition("/")[2] in _AVERAGED]
            scores |= {averaged_name(name): scores[name] for name in names}
        return trainer.strategy.broadcast(scores, 0)

    def _compute(self, evaluator: CocoEvaluator, phase: str) -> dict[str, float | None]:
        """The metrics of all processes' detections on rank 0, empty on the others."""
        states = gather_objects([evaluator.state()])
        if rank() != 0:
            return {}
        evaluator.merge(states[1:])
        result = evaluator.compute()
        self._latest = Evaluation(evaluator, result)
        best = result.best
        scores: dict[str, float | None] = {}
        for kind, stats in result.by_kind.items():
            scores |= dict(zip(SCORES[kind], [*map(stats.get, _STATS), result.recall(kind)], strict=True))
        scores |= {"F1": best.f1, "precision": best.precision, "recall": best.recall, "threshold": best.threshold}
        if self.spec.train.log_per_class_metrics:
            scores |= {f"AP/{row.name}": row.ap for row in result.per_class if row.ap is not None}
        return {f"{phase}/{name}": value for name, value in scores.items()}


class ScoredModule(LightningModule):
    """A Lightning module that scores its validation and test epochs. Its steps pass detections to `scores`."""

    def __init__(self, spec: ExperimentSpec) -> None:
        super().__init__()
        self.spec = spec
        self.validated_epoch = -1
        self.metrics: dict[str, float | None] = {}  # of the latest validation or test; None: undefined, not logged
        self.evaluation: Evaluation | None = None  # the latest one, in the first process; None if it is not needed
        self._scores: EpochScores | None = None
        self._reported: set[str] = set()  # undefined scores that have been reported

    @property
    def scores(self) -> EpochScores:
        assert self._scores is not None, "no validation or test epoch has started"
        return self._scores

    def on_validation_epoch_start(self) -> None:
        self._start_scoring(self.trainer.val_dataloaders)

    def on_test_epoch_start(self) -> None:
        self._start_scoring(self.trainer.test_dataloaders)

    def on_validation_epoch_end(self) -> None:
        self._finish_scoring("val")

    def on_test_epoch_end(self) -> None:
        self._finish_scoring("test")

    def log_losses(self, phase: str, losses: Mapping[str, Tensor], terms: Iterable[str], size: Any) -> None:
        """Log the loss and some of its terms as means of the epoch, the loss for callbacks also under TAO's name."""
        means = {f"{phase}/{name}": losses[name] for name in ("loss", *terms) if name in losses}
        options = {"on_step": False, "on_epoch": True, "batch_size": size, "sync_dist": True}
        self.log_dict(means, **options)
        self.log(f"{phase}_loss", losses["loss"], **options, logger=False)

    def _start_scoring(self, loaders: Any) -> None:
        loader = loaders[0] if isinstance(loaders, Sequence) else loaders
        average = average_of(self.trainer)
        raw = average.set_aside if average is not None else {}
        weights = {name.removeprefix(PREFIX): tensor for name, tensor in raw.items() if name.startswith(PREFIX)}
        averaged = average is not None and average.is_swapped_in
        self._scores = EpochScores(loader.dataset, self.spec, weights, averaged)

    def _finish_scoring(self, phase: str) -> None:
        """Log the scores of all processes, except undefined ones, so that no placeholder counts as a score."""
        self.metrics = self.scores.compute(self.trainer, phase)
        self.evaluation = self.scores.evaluation
        self.validated_epoch = self.current_epoch
        self._report_undefined(phase)
        defined = {name: value for name, value in self.metrics.items() if value is not None}
        self.log_dict(defined, rank_zero_only=False, sync_dist=False)
        known = {tao_name(name): defined[name] for part in MAIN_SCORES if (name := f"{phase}/{part}") in defined}
        self.log_dict(known, logger=False, rank_zero_only=False, sync_dist=False)
        self._scores = None

    def _report_undefined(self, phase: str) -> None:
        """Warn about undefined scores, once per score and run."""
        names = [name for name, value in self.metrics.items() if value is None and name not in self._reported]
        self._reported.update(names)
        if names and rank() == 0:
            logger.warning(
                "The %s data has no objects to score %s against, so it is undefined: it is not logged, and ignored by "
                "the best checkpoint and early stopping",
                phase, ", ".join(names),
            )  # fmt: skip
