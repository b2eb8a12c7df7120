"""Progress of long work: a bar on a terminal, lines elsewhere, and lines in `status.json`, with the remaining time.

Work of known size is a `Task` or a `track` over items, a series of different steps is `Steps`. They may be nested, and
all bars share one display. Only the first process of a run shows progress.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from rtdetr_tool.log import console
from rtdetr_tool.status import current_status, process_rank

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress

logger = logging.getLogger(__name__)

LINE_EVERY, STATUS_EVERY, REDRAW_EVERY = 20.0, 30.0, 0.2  # seconds
Item = TypeVar("Item")


class Bar:
    """A row of the display, from construction to `close`; invisible unless the console is a terminal."""

    _display: Progress | None = None  # exists while there are rows, because a console has room for one
    _rows = 0
    _lock = threading.Lock()

    def __init__(self, title: str, total: float | None) -> None:
        self._row: Any = None
        if process_rank() != 0 or not console().is_terminal or console().quiet:
            return
        with Bar._lock:
            if Bar._display is None:
                Bar._display = _new_display()
                Bar._display.start()
            Bar._rows += 1
            self._row = Bar._display.add_task(title, total=total, text="")

    @property
    def visible(self) -> bool:
        return self._row is not None

    def update(self, done: float, text: str = "") -> None:
        if self._row is not None and Bar._display is not None:
            Bar._display.update(self._row, completed=done, text=text)

    def close(self) -> None:
        if self._row is None:
            return
        with Bar._lock:
            if Bar._display is not None:
                Bar._display.remove_task(self._row)
                Bar._rows -= 1
                if Bar._rows == 0:
                    Bar._display.stop()
                    Bar._display = None
        self._row = None


def _new_display() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[text]}"))
    return Progress(*columns, console=console(), transient=True)


class Task:
    """Work on items, used as a context manager: call `advance` after each.

    Args:
        total: number of items; None = unknown, without a remaining time.
        unit: what the items are, for the speed; empty = not shown.
        done: items that an earlier run has finished.
    """

    def __init__(self, title: str, total: int | None = None, unit: str = "", done: int = 0) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, done
        self.detail = ""
        self._first = done

    def __enter__(self) -> Task:
        self._began = self._lined = self._stated = time.monotonic()
        self._drawn = 0.0
        self._bar = Bar(self.title, self.total)
        self._redraw(time.monotonic())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def advance(self, count: int = 1, detail: str = "") -> None:
        self.done += count
        self.detail = detail
        self._show()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def seconds_left(self) -> float | None:
        """Remaining time at the speed so far; None before the first item and without a total."""
        done = self.done - self._first
        if self.total is None or done <= 0:
            return None
        return self.elapsed / done * max(self.total - self.done, 0)

    def text(self) -> str:
        """Everything but the title: `120/400 images, 12.3 images/s, 0:00:23 left`."""
        of = "" if self.total is None else f"/{self.total}"
        parts = [f"{self.done}{of} {self.unit}".rstrip()]
        if self.unit and self.done > self._first:
            parts.append(f"{(self.done - self._first) / max(self.elapsed, 1e-9):.1f} {self.unit}/s")
        return ", ".join([*parts, *self._time_parts()])

    def _time_parts(self) -> list[str]:
        left = self.seconds_left()
        return [*([self.detail] if self.detail else []), *([] if left is None else [f"{duration(left)} left"])]

    def _position(self) -> float:
        return self.done

    def _show(self) -> None:
        """Redraw the bar, write a line and a status line, each if it is due."""
        now = time.monotonic()
        if self._bar.visible:
            self._redraw(now)
        elif now - self._lined >= LINE_EVERY and process_rank() == 0:
            self._lined = now
            logger.info("%s: %s", self.title, self.text())
        if now - self._stated >= STATUS_EVERY:
            self._state(now)

    def _redraw(self, now: float) -> None:
        if now - self._drawn >= REDRAW_EVERY:
            self._drawn = now
            self._bar.update(self._position(), self.text())

    def _state(self, now: float) -> None:
        self._stated, left = now, self.seconds_left()
        details: dict[str, Any] = {} if left is None else {"eta": left}
        current_status().running(f"{self.title}: {self.text()}", **details)


class Steps(Task):
    """A series of different steps: call `begin` with the name of each, in order; a step may be skipped.

    Shows the time even while a step does not return. The remaining time is a guess from the shares of the steps.

    Args:
        steps: share of each step in the whole time, in any unit.
    """

    def __init__(self, title: str, steps: Mapping[str, float]) -> None:
        super().__init__(title, len(steps))
        self.steps, self.step = dict(steps), ""
        self._fraction = self._marked = 0.0  # of the current step, and the time when it was known
        self._over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="rtdetr-progress", daemon=True)

    def __enter__(self) -> Steps:
        super().__enter__()
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._ticker.join()
        super().__exit__(kind, error, trace)

    def begin(self, step: str) -> None:
        """Start a step; the ones before it are over."""
        self.step, self.done = step, list(self.steps).index(step)
        self.reach(0.0)
        self._redraw(time.monotonic())
        self._state(time.monotonic())

    def reach(self, fraction: float) -> None:
        """Note how much of the current step is done, 0..1, if that is known; may be called in any thread."""
        self._fraction, self._marked = fraction, time.monotonic()

    def seconds_left(self) -> float | None:
        share = self._share()
        if share <= 0:
            return None
        return max((self._marked - self._began) / share * (1 - share) - (time.monotonic() - self._marked), 0.0)

    def text(self) -> str:
        if not self.step:
            return ""
        return ", ".join([f"{self.step} ({self.done + 1}/{self.total})", duration(self.elapsed), *self._time_parts()])

    def _share(self) -> float:
        """Share of the whole time until the last mark."""
        shares = list(self.steps.values())
        return (sum(shares[: self.done]) + self._fraction * shares[self.done]) / sum(shares)

    def _position(self) -> float:
        return self._share() * len(self.steps) if self.step else 0.0

    def _tick(self) -> None:
        while not self._over.wait(REDRAW_EVERY):
            if self.step:
                self._show()


def track(items: Iterable[Item], title: str, total: int | None = None, unit: str = "") -> Iterator[Item]:
    """The items, with progress shown while they are used; `total` is their number unless they have a length."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Task(title, total, unit) as task:
        for item in items:
            yield item
            task.advance()


def duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
