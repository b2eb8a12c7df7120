"""SIGTERM, SIGUSR1 and SIGHUP while a run trains: finish the step, save, end with exit code 75 to be started again.

A signal that the program was started to ignore stays ignored, such as SIGHUP under `nohup`. An exception that ends the
training saves as well.

Outside of the training loop there is nothing to save, and the signal ends the run at once (`commands.session`).
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
from rtdetr_tool.training.checkpointing import checkpoints_of
from rtdetr_tool.training.distributed import world_size
from rtdetr_tool.training.step_guard import is_finite

logger = logging.getLogger(__name__)


class PreemptionSave(Checkpoint):
    """Ends the run after the step (or validation batch) in which a signal came to any of its processes.

    Lightning's handlers are replaced while the loop runs: they communicate with the other processes from inside the
    handler, where these may be in the middle of another exchange. A `Checkpoint`, so that it acts after all callbacks.
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
            wanted = [number for number in Preempted.signals if signal.getsignal(number) is not signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._note) for number in wanted}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = False
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        training, self._training = self._training, False
        if training and isinstance(exception, Exception) and trainer.global_step > self._first_step:
            _save_after(exception, trainer, pl_module)
        if not isinstance(exception, Preempted):  # a second signal must not disturb the end that the first asked for
            self._give_back()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        pl_module.guard.signal = self.requested  # exchanged with the other processes in the course of the step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        stepped, self._last_step = trainer.global_step != self._last_step, trainer.global_step
        number = self.requested if world_size() == 1 else pl_module.guard.agreed_signal
        if stepped and number:  # not in the middle of an accumulation
            trainer._logger_connector.update_train_step_metrics()  # which Lightning does after this hook
            self._end(trainer, number)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.state.fn == "fit" and (number := self._agreed(pl_module)):
            self._end(trainer, number)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = trainer.max_epochs is not None and trainer.current_epoch + 1 >= trainer.max_epochs
        if (number := self._agreed(pl_module)) and not last:
            _log_epoch(trainer)
            self._end(trainer, number)

    def _note(self, number: int, frame: object) -> None:
        self.requested = number

    def _agreed(self, pl_module: LightningModule) -> int:
        """The signal that came to any process, 0 if none."""
        if world_size() == 1:
            return self.requested
        found = torch.tensor(self.requested, device=pl_module.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def _end(self, trainer: Trainer, number: int) -> None:
        name = signal.Signals(number).name
        logger.warning("%s: saving, then ending.", name)
        path = checkpoints_of(trainer).save_now(trainer)
        raise Preempted(f"ended by {name} after saving {path}; start the same command again to go on.")

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def _save_after(error: Exception, trainer: Trainer, pl_module: LightningModule) -> None:
    """Save what the run had reached when the error came, unless a file has it, the weights or the disk are the fault.

    Several processes cannot save together when one of them has failed: there, the last regular checkpoint counts.
    """
    saver = checkpoints_of(trainer)
    if saver is None or world_size() > 1 or isinstance(error, WriteError) or not is_finite(pl_module):
        return
    try:
        path = saver.save_now(trainer)
    except Exception as second:
        logger.warning("What was trained since the last checkpoint could not be saved: %s", second)
    else:
        logger.warning("The run failed; what it has learned is saved in %s. The same command resumes from it.", path)


def _log_epoch(trainer: Trainer) -> None:
    """Send the means of an epoch to the loggers, which Lightning does after the hooks, at the epoch's last step."""
    loop = trainer.fit_loop.epoch_loop
    trainer._logger_connector.on_epoch_end()
    loop._batches_that_stepped -= 1
    trainer._logger_connector.update_train_epoch_metrics()
    loop._batches_that_stepped += 1
