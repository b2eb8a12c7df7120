"""Run an iterator in a thread, a bounded number of items ahead of its consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class _End:
    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class ReadAhead(Generic[T]):
    """Lists of items of `iterable`, which is read in another thread. Use it as a context manager.

    At most `size` items wait. If the consumer is slower, the thread waits, or with `drop` the oldest waiting item is
    dropped: a live source does not wait.
    """

    def __init__(self, iterable: Iterable[T], size: int, drop: bool = False) -> None:
        self.dropped = 0
        self._iterable, self._drop = iterable, drop
        self._queue: queue.Queue[T | _End] = queue.Queue(size)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="read ahead", daemon=True)

    def __enter__(self) -> ReadAhead[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            while self._take_out():
                pass
            self._thread.join(0.05)
            if self._drop:
                break  # a live source may be waiting for its network; the thread ends with the next frame

    def lists(self, count: int, wait: bool = True) -> Iterator[list[T]]:
        """Lists of `count` items, the last one shorter; without `wait`, of those that are available (at least one)."""
        while True:
            items: list[T] = []
            while len(items) < count:
                try:
                    item = self._queue.get(block=wait or not items)
                except queue.Empty:
                    break
                if isinstance(item, _End):
                    if items:
                        yield items
                    if item.error is not None:
                        raise item.error
                    return
                items.append(item)
            yield items

    def _read(self) -> None:
        end = _End()
        try:
            for item in self._iterable:
                if not self._put(item, self._drop):
                    return
        except BaseException as error:
            end = _End(error)
        self._put(end, False)

    def _put(self, item: T | _End, drop: bool) -> bool:
        """Put an item; False if the consumer has ended the iteration."""
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=None if drop else 0.1, block=not drop)
                return True
            except queue.Full:
                if drop:
                    self.dropped += self._take_out()
        return False

    def _take_out(self) -> bool:
        """Remove the oldest waiting item; whether there was one."""
        try:
            self._queue.get_nowait()
        except queue.Empty:
            return False
        return True
