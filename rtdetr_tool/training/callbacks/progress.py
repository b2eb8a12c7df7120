"""Show epoch, step, loss, images per second and remaining time on the console."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, cast

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar

from rtdetr_tool.progress import LINE_EVERY, Bar, duration
from rtdetr_tool.spec.metric_names import MAIN_SCORES, TRAIN_LOSS, VAL_LOSS
from rtdetr_tool.training.distributed import world_size
from rtdetr_tool.training.step_guard import guard_of

if TYPE_CHECKING:
    from rtdetr_tool.training.module import DetectorModule

logger = logging.getLogger(__name__)


class Pace:
    """Speed and remaining time of a run. Validation counts toward the remaining time, but not as training speed."""

    def __init__(self, total_steps: int, done_steps: int = 0) -> None:
        self.total_steps, self.first_step = total_steps, done_steps
        self.started = time.monotonic()
        self.steps = done_steps
        self.recent_images, self.recent_since, self.images_per_second = 0, self.started, 0.0

    def add(self, images: int, step: int) -> None:
        self.steps = step
        self.recent_images += images
        elapsed = time.monotonic() - self.recent_since
        if elapsed >= 2.0 or self.images_per_second == 0.0:
            self.images_per_second = self.recent_images / max(elapsed, 1e-9)
            self.recent_images, self.recent_since = 0, time.monotonic()

    def resume(self) -> None:
        """Continue measuring after a pause for validation or saving."""
        self.recent_images, self.recent_since = 0, time.monotonic()

    def seconds_left(self) -> float | None:
        done = self.steps - self.first_step
        if done <= 0:
            return None
        return (time.monotonic() - self.started) / done * max(self.total_steps - self.steps, 0)


class ProgressReport(ProgressBar):
    """A progress bar on a terminal; otherwise (a file, a pipe) a plain line every `line_every` seconds and per epoch.

    The loss is copied from the device only for drawing, at most every `redraw_every` seconds.
    """

    def __init__(self, line_every: float = LINE_EVERY, redraw_every: float = 0.5) -> None:
        super().__init__()
        self.line_every, self.redraw_every = line_every, redraw_every
        self.pace = Pace(0)
        self._enabled = True
        self._bar: Bar | None = None
        self._last_drawn = 0.0
        self._validated = 0  # batches of the current validation

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    @property
    def active(self) -> bool:
        return self._enabled and self.trainer.is_global_zero

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        epoch, batch = trainer.current_epoch, trainer.fit_loop.batch_idx + 1  # a run may resume within an epoch
        self.pace = Pace(total, epoch * int(trainer.num_training_batches) + batch)
        self._last_drawn = time.monotonic()
        self.on_train_epoch_start(trainer, pl_module)  # Lightning skips it when a run resumes within an epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pace.resume()
        self._show(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", int(trainer.num_training_batches))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1
        self.pace.add(len(batch) * world_size(), done)
        if not self.active:
            return
        shown = self._bar is not None and self._bar.visible
        wait = self.redraw_every if shown else self.line_every
        if time.monotonic() - self._last_drawn < wait:
            return
        self._last_drawn = time.monotonic()
        text = self._describe(pl_module)
        if shown and self._bar is not None:
            self._bar.update(batch_idx + 1, f"{batch_idx + 1}/{int(trainer.num_training_batches)}, {text}")
        else:
            where = f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, step {batch_idx + 1}"
            logger.info("%s/%d: %s", where, int(trainer.num_training_batches), text)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._validated = 0
            self._show("validation", sum(int(n) for n in trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        if self._bar is not None and trainer.state.fn == "fit":
            self._validated += 1
            self._bar.update(self._validated, f"batch {self._validated}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.active:
            return
        metrics, module = trainer.callback_metrics, cast("DetectorModule", pl_module)
        names = [TRAIN_LOSS]
        if module.validated_epoch == trainer.current_epoch:
            names += [VAL_LOSS, *(f"val/{name}" for name in MAIN_SCORES)]
        undefined = [name for name in names if module.metrics.get(name, 0.0) is None]
        parts = [f"{name} {float(metrics[name]):.4f}" for name in names if name in metrics]
        parts += [f"{name} undefined" for name in undefined]
        left = self.pace.seconds_left()
        speed = f"{self.pace.images_per_second:.1f} images/s"
        parts += [speed] + ([f"{duration(left)} left"] if left else [])
        if skipped := guard_of(pl_module).skipped:
            parts.append(f"{skipped} steps skipped since the start (not finite)")
        logger.info("Epoch %d/%s done: %s", trainer.current_epoch + 1, trainer.max_epochs, ", ".join(parts))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _show(self, description: str, total: int) -> None:
        """Start a new bar for another task."""
        self._close()
        if self.active:
            self._bar = Bar(description, total)

    def _describe(self, pl_module: LightningModule) -> str:
        loss = cast("DetectorModule", pl_module).last_loss
        shown = "" if loss is None else f"loss {loss.item():.4f}, "
        seconds = self.pace.seconds_left()
        left = duration(seconds) if seconds is not None else "?"
        return f"{shown}{self.pace.images_per_second:.1f} images/s, {left} left"

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
