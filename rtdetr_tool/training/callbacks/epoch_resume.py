"""Resume in the middle of an epoch, at the batch where the checkpoint was saved.

Lightning's checkpoint has the epoch and the number of optimizer steps. A checkpoint saved in the middle of an epoch
also has, under `position`

::

    epoch, batches       the epoch, and its batches whose optimizer step is done
    images_per_batch     over all processes, so that the same images are skipped with another batch size
    means                per process: sum and weight of every loss that is logged as an epoch mean

Augmentation, image sizes and noise are functions of seed, epoch, step and image, so no other state is needed. A
checkpoint saved after the last batch of an epoch resumes with the validation of that epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.training.distributed import gather_objects, rank, world_size

if TYPE_CHECKING:
    from rtdetr_tool.training.module import DetectorModule

logger = logging.getLogger(__name__)

POSITION_KEY = "position"
_COUNTERS = ("ready", "started", "processed", "completed")
_Means = dict[str, dict[str, Any]]


class EpochResume(Callback):
    """Save the position in a running epoch and resume from it. Must come before callbacks that act on batches."""

    def __init__(self) -> None:
        self._start: dict[str, Any] | None = None
        self._means: dict[str, tuple[float, float]] = {}  # of the batches before the resume, until the first batch ends

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        loop: Any = trainer.fit_loop
        counters = loop.epoch_progress.current
        if trainer.state.fn != "fit" or counters.ready == counters.processed:
            return
        done = loop.epoch_loop.batch_progress.current.processed
        if done < trainer.num_training_batches:  # while accumulating, resume after the last optimizer step
            done -= done % trainer.accumulate_grad_batches
        checkpoint[POSITION_KEY] = {
            "epoch": trainer.current_epoch,
            "batches": done,
            "images_per_batch": _images_per_batch(pl_module),
            "means": gather_objects([_epoch_means(loop.epoch_loop._results)]),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        position = checkpoint.get(POSITION_KEY)
        if trainer.state.fn != "fit":
            return
        _check_epochs(checkpoint, trainer)
        if position is None:
            return
        images, size = position["batches"] * position["images_per_batch"], _images_per_batch(pl_module)
        self._start = {**position, "batches": images // size}
        if images % size:
            logger.warning(
                "The checkpoint was saved after %d images of the epoch, which is not a multiple of the batch size, now "
                "%d; this epoch repeats %d images", images, size, images % size,
            )  # fmt: skip
        _rewrite_progress(checkpoint["loops"]["fit_loop"], self._start, checkpoint["global_step"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._start is None:
            return
        start, self._start = self._start, None
        logger.info("Resuming epoch %d after batch %d", start["epoch"] + 1, start["batches"])
        loader: Any = trainer.train_dataloader
        loader.sampler.start_at(start["epoch"], start["batches"])
        means = start["means"]
        if start["batches"] >= trainer.num_training_batches:
            trainer.fit_loop.epoch_loop._batches_that_stepped -= 1  # Lightning counts the step after its validation
            _log_means(pl_module, means)
        elif len(means) == world_size():
            self._means = {name: (mean["sum"], mean["weight"]) for name, mean in means[rank()].items()}
        elif rank() == 0:
            self._means = {name: (mean["sum"], mean["weight"]) for name, mean in _sum_over_ranks(means).items()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if not self._means:
            return
        results: Any = trainer.fit_loop.epoch_loop._results
        for name, (total, weight) in self._means.items():
            if name in results:
                results[name].value = total + results[name].value
                results[name].cumulated_batch_size = weight + results[name].cumulated_batch_size
        self._means = {}


def _check_epochs(checkpoint: Mapping[str, Any], trainer: Trainer) -> None:
    """Raise CheckpointError if the checkpoint has more epochs than the run. Lightning only notices some cases."""
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs < done:
        raise CheckpointError(
            f"{trainer.ckpt_path} was trained for {done} epochs, but train.num_epochs is {trainer.max_epochs}, so "
            "there is nothing to train. Raise train.num_epochs to train longer, set another results_dir (-r) to start "
            "a new run, or use the checkpoint as it is."
        )


def _images_per_batch(pl_module: LightningModule) -> int:
    return cast("DetectorModule", pl_module).spec.dataset.batch_size * world_size()


def _epoch_means(results: Mapping[str, Any]) -> _Means:
    """Sum and weight of each epoch mean that Lightning accumulates, by its name there (`training_step.train_loss`)."""
    means = {}
    for name, metric in results.items():
        meta = metric.meta
        if metric.is_tensor and meta.on_epoch and meta.is_mean_reduction and not metric.has_reset:
            total, weight = metric.value.item(), metric.cumulated_batch_size.item()
            means[name] = {
                "sum": total, "weight": weight, "shared": meta.sync.should, "forked": meta.forked, "logged": meta.logger
            }  # fmt: skip
    return means


def _sum_over_ranks(means: list[_Means]) -> _Means:
    """Add up the sums of all processes, in float32 as Lightning would."""
    added = {}
    for name, mean in means[0].items():
        total = torch.tensor([part[name]["sum"] for part in means if name in part]).sum().item()
        added[name] = {**mean, "sum": total, "weight": sum(part[name]["weight"] for part in means if name in part)}
    return added


def _log_means(pl_module: LightningModule, means: list[_Means]) -> None:
    """Log the means of an epoch whose batches are all done, under the names they have at its end."""
    shared = _sum_over_ranks(means)
    local = means[rank()] if len(means) == world_size() else shared
    for name, mean in local.items():
        mean = shared[name] if mean["shared"] else mean
        value = torch.tensor(mean["sum"], device=pl_module.device) / mean["weight"]
        name = name.partition(".")[2]
        hidden = mean["forked"] or not mean["logged"]
        pl_module.log(name, value, on_epoch=True, logger=False if hidden else None)  # None: if there is one
        if mean["forked"]:
            pl_module.log(f"{name}_epoch", value, on_epoch=True)


def _rewrite_progress(fit_loop: dict[str, Any], start: Mapping[str, Any], global_step: int) -> None:
    """Set Lightning's counters to their values between two batches.

    Lightning's counters depend on where in a step the checkpoint was saved, and it skips the validation of an epoch if
    that was after the last batch. It validates if a validation has started, hence the last counters.
    """
    epoch, batches = start["epoch"], start["batches"]
    if batches == 0:  # the same as the end of the previous epoch
        for counts in fit_loop["epoch_progress"].values():
            counts.update(dict.fromkeys(_COUNTERS, epoch))
        return
    progress = fit_loop["epoch_loop.batch_progress"]
    progress["total"].update(dict.fromkeys(_COUNTERS, progress["total"]["processed"]))
    progress["current"].update(dict.fromkeys(_COUNTERS, batches))
    progress["is_last_batch"] = False
    validation = fit_loop["epoch_loop.val_loop.batch_progress"]
    validation["current"].update(dict.fromkeys(_COUNTERS, 0))
    validation["total"].update({"ready": 1, "started": 1, "processed": 0, "completed": 0})
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = global_step
