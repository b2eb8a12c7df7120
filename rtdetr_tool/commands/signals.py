"""End a command cleanly on signals, and recognize an interrupted one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rtdetr_tool.errors import Preempted


@contextmanager
def termination_as_preemption(last: bool = False) -> Iterator[Callable[[], None]]:
    """End the run cleanly on SIGTERM, SIGUSR1 (schedulers) and SIGHUP (a closed terminal): FAILURE line, exit code 75.

    Yields a function to call when the run is over. From then on these signals are ignored, and with `last`, which means
    that the process ends as well, so is Ctrl-C. During training the run handles these signals itself and saves first
    (`training.callbacks.preemption`).
    """
    finished = threading.Event()

    def end(signum: int, frame: object) -> None:
        if not finished.is_set():
            finished.set()
            raise Preempted(f"Ended by {signal.Signals(signum).name}; run the same command again to resume.")

    main = threading.current_thread() is threading.main_thread()
    usable = [number for number in Preempted.signals if main and signal.getsignal(number) is signal.SIG_DFL]
    for number in usable:
        signal.signal(number, end)

    def over() -> None:
        finished.set()
        for number in (*usable, signal.SIGINT) if last and main else ():
            signal.signal(number, signal.SIG_IGN)  # Python resets its own handlers on exit, but not this

    try:
        yield over
    finally:
        for number in usable if not last else ():
            signal.signal(number, signal.SIG_DFL)


def was_interrupted(error: BaseException | None) -> bool:
    """Whether the error is a `KeyboardInterrupt`, which Lightning turns into `SystemExit(1)`."""
    while isinstance(error, SystemExit):
        error = error.__context__
    return isinstance(error, KeyboardInterrupt)
