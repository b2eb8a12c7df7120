"""Save and exit on SIGTERM, SIGUSR1 and SIGHUP: finish the step, save, and exit with code 75 so that it is restarted.

A signal that the process was started to ignore stays ignored, such as SIGHUP under `nohup`. A run that fails with an
exception saves a checkpoint as well.

Outside the training loop there is nothing to save, and a signal ends the run at once (`commands.session`).
"""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from rtdetr_tool.errors import Preempted, WriteError
from rtdetr_tool.training.callbacks.periodic_checkpoint import checkpoints_of
from rtdetr_tool.training.distributed import world_size
from rtdetr_tool.training.step_guard import guard_of, is_finite

logger = logging.getLogger(__name__)


class PreemptionSave(Checkpoint):
    """End the run after the step (or validation batch) in which any of its processes received a signal.

    Lightning's signal handlers are replaced while the loop runs, because they communicate with the other processes from
    inside the handler, where those may be in the middle of another collective operation. This class is a `Checkpoint`
    so that Lightning runs it after all other callbacks.
    """

    def __init__(self) -> None:
        self.requested = 0
        self._handlers: dict[int, Any] = {}
        self._last_step = self._first_step = 0
        self._training = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = self._first_step = trainer.global_step
        self._training = True
        if threading.current_thread() is threading.main_thread():
            signals = [number for number in Preempted.signals if signal.getsignal(number) is not signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._on_signal) for number in signals}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = False
        self._restore_handlers()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        training, self._training = self._training, False
        if training and isinstance(exception, Exception) and trainer.global_step > self._first_step:
            _save_after_failure(exception, trainer, pl_module)
        if not isinstance(exception, Preempted):  # a second signal must not interrupt the exit that the first started
            self._restore_handlers()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        guard_of(pl_module).signal = self.requested  # exchanged with the other processes during the step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        stepped, self._last_step = trainer.global_step != self._last_step, trainer.global_step
        number = self.requested if world_size() == 1 else guard_of(pl_module).agreed_signal
        if stepped and number:  # not while accumulating gradients
            trainer._logger_connector.update_train_step_metrics()  # Lightning does this after the hook
            self._end(trainer, number)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.state.fn == "fit" and (number := self._agreed_signal(pl_module)):
            self._end(trainer, number)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = trainer.max_epochs is not None and trainer.current_epoch + 1 >= trainer.max_epochs
        if (number := self._agreed_signal(pl_module)) and not last:
            _log_epoch(trainer)
            self._end(trainer, number)

    def _on_signal(self, number: int, frame: object) -> None:
        self.requested = number

    def _agreed_signal(self, pl_module: LightningModule) -> int:
        """The signal that any process received, 0 if none did."""
        if world_size() == 1:
            return self.requested
        received = torch.tensor(self.requested, device=pl_module.device)
        dist.all_reduce(received, op=dist.ReduceOp.MAX)
        return int(received)

    def _end(self, trainer: Trainer, number: int) -> None:
        name = signal.Signals(number).name
        logger.warning("Received %s; saving a checkpoint and exiting", name)
        saver = checkpoints_of(trainer)
        saved = f"after saving {saver.save_now(trainer)}" if saver else "without a checkpoint"
        raise Preempted(f"ended by {name} {saved}; run the same command again to resume.")

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def _save_after_failure(error: Exception, trainer: Trainer, pl_module: LightningModule) -> None:
    """Save the current state unless it is saved already, the weights are not finite, or saving is what failed.

    When one of several processes has failed, they can no longer save together; the last regular checkpoint remains.
    """
    saver = checkpoints_of(trainer)
    if saver is None or world_size() > 1 or isinstance(error, WriteError) or not is_finite(pl_module):
        return
    try:
        path = saver.save_now(trainer)
    except Exception as second:
        logger.warning("The training since the last checkpoint could not be saved: %s", second)
    else:
        logger.warning("The run failed; its state is saved in %s. Run the same command again to resume from it.", path)


def _log_epoch(trainer: Trainer) -> None:
    """Send the epoch means to the loggers at the epoch's last step. Lightning does this after the hooks."""
    loop = trainer.fit_loop.epoch_loop
    trainer._logger_connector.on_epoch_end()
    loop._batches_that_stepped -= 1
    trainer._logger_connector.update_train_epoch_metrics()
    loop._batches_that_stepped += 1
