"""Going on in the middle of an epoch: at the batch where a checkpoint was written, as if nothing had happened.

Lightning's checkpoint says which epoch and how many optimizer steps; beyond that such a file holds under `position`

::

    epoch, batches       of the running epoch, those whose optimizer step is done
    images_per_batch     of all processes together: with another number the same images are left out
    means                per process: sum and weight of every loss that is logged as the mean of an epoch

Augmentation, sizes and noise are functions of seed, epoch, step and image, so there is nothing else to remember. A file
written after the last batch of an epoch is resumed with that epoch's validation.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.training.distributed import gather_objects, rank, world_size

logger = logging.getLogger(__name__)

POSITION_KEY = "position"
_COUNTS = ("ready", "started", "processed", "completed")


class EpochPosition(Callback):
    """Writes the position into checkpoints of a running epoch and goes on from it. It must see a batch first."""

    def __init__(self) -> None:
        self._start: dict[str, Any] | None = None
        self._means: dict[str, tuple[float, float]] = {}  # of the batches before, until the first batch is there

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        loop = trainer.fit_loop
        if trainer.state.fn != "fit" or loop.epoch_progress.current.ready == loop.epoch_progress.current.processed:
            return
        done = loop.epoch_loop.batch_progress.current.processed
        if done < trainer.num_training_batches:  # in the middle of an accumulation the last step counts
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
                "The checkpoint was written %d images into an epoch, which no longer is a whole number of batches (%d "
                "images each): %d images are seen twice in this epoch.", images, size, images % size,
            )  # fmt: skip
        _rewrite_progress(checkpoint["loops"]["fit_loop"], self._start, checkpoint["global_step"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._start is None:
            return
        start, self._start = self._start, None
        logger.info("Going on in epoch %d after batch %d.", start["epoch"] + 1, start["batches"])
        trainer.train_dataloader.sampler.start_at(start["epoch"], start["batches"])
        means = start["means"]
        if start["batches"] >= trainer.num_training_batches:
            trainer.fit_loop.epoch_loop._batches_that_stepped -= 1  # Lightning counts the step after its validation
            _log_means(pl_module, means)
        elif len(means) == world_size():
            self._means = {name: (mean["sum"], mean["weight"]) for name, mean in means[rank()].items()}
        elif rank() == 0:
            self._means = {name: (mean["sum"], mean["weight"]) for name, mean in _together(means).items()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if not self._means:
            return
        results = trainer.fit_loop.epoch_loop._results
        for name, (total, weight) in self._means.items():
            if name in results:
                results[name].value = total + results[name].value
                results[name].cumulated_batch_size = weight + results[name].cumulated_batch_size
        self._means = {}


def _check_epochs(checkpoint: Mapping[str, Any], trainer: Trainer) -> None:
    """CheckpointError where more epochs are done than the run is to have; Lightning says so for some of them only."""
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs < done:
        raise CheckpointError(
            f"{trainer.ckpt_path} has {done} epochs of training behind it, train.num_epochs is {trainer.max_epochs}: "
            "there is nothing to train. Raise train.num_epochs to train longer, give another results_dir (-r) for a "
            "new run, or use the checkpoint as it is."
        )


def _images_per_batch(pl_module: LightningModule) -> int:
    return pl_module.spec.dataset.batch_size * world_size()


def _epoch_means(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sum and weight of what Lightning averages over the epoch, by its own name for it (`training_step.train_loss`)."""
    means = {}
    for name, metric in results.items():
        meta = metric.meta
        if metric.is_tensor and meta.on_epoch and meta.is_mean_reduction and not metric.has_reset:
            total, weight = metric.value.item(), metric.cumulated_batch_size.item()
            means[name] = {"sum": total, "weight": weight, "shared": meta.sync.should, "forked": meta.forked}
    return means


def _together(means: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The sums of all processes added up, in single precision as they would be."""
    added = {}
    for name, mean in means[0].items():
        total = torch.tensor([part[name]["sum"] for part in means if name in part]).sum().item()
        added[name] = {**mean, "sum": total, "weight": sum(part[name]["weight"] for part in means if name in part)}
    return added


def _log_means(pl_module: LightningModule, means: list[dict[str, dict[str, Any]]]) -> None:
    """All batches of the epoch are done: log what their means are, under the names that they have at its end."""
    shared = _together(means)
    own = means[rank()] if len(means) == world_size() else shared
    for name, mean in own.items():
        mean = shared[name] if mean["shared"] else mean
        value = torch.tensor(mean["sum"], device=pl_module.device) / mean["weight"]
        name = name.partition(".")[2]
        pl_module.log(name, value, on_epoch=True, logger=not mean["forked"])
        if mean["forked"]:
            pl_module.log(f"{name}_epoch", value, on_epoch=True)


def _rewrite_progress(fit_loop: dict[str, Any], start: Mapping[str, Any], global_step: int) -> None:
    """Lightning's counters as they are between two batches.

    It counts differently depending on where in a step a checkpoint was written, and skips an epoch's validation where
    that was after the last batch; a validation that has begun is what makes it validate.
    """
    epoch, batches = start["epoch"], start["batches"]
    if batches == 0:  # as at the end of the epoch before
        for counts in fit_loop["epoch_progress"].values():
            counts.update(dict.fromkeys(_COUNTS, epoch))
        return
    progress = fit_loop["epoch_loop.batch_progress"]
    progress["total"].update(dict.fromkeys(_COUNTS, progress["total"]["processed"]))
    progress["current"].update(dict.fromkeys(_COUNTS, batches))
    progress["is_last_batch"] = False
    validation = fit_loop["epoch_loop.val_loop.batch_progress"]
    validation["current"].update(dict.fromkeys(_COUNTS, 0))
    validation["total"].update({"ready": 1, "started": 1, "processed": 0, "completed": 0})
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = global_step
