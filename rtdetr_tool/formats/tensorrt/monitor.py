"""Watch an engine build: how much of it is done, and a way to end it early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Phases:
    """The phases of a build as the library reports them; a phase may have phases inside one of its steps."""

    def __init__(self) -> None:
        self._phases: dict[str, tuple[str, int]] = {}  # name -> name of the outer phase, number of steps
        self._done: dict[str, int] = {}

    def start(self, name: str, parent: str, steps: int) -> None:
        self._phases[name], self._done[name] = (parent, max(steps, 1)), 0

    def finish(self, name: str) -> None:
        self._phases.pop(name, None)

    def complete(self, name: str, step: int) -> None:
        self._done[name] = step + 1

    def fraction(self) -> float:
        """How much of the outermost phase is done, 0..1."""
        share, position, outer = 1.0, 0.0, ""
        while (name := next((name for name, (parent, _) in self._phases.items() if parent == outer), None)) is not None:
            steps = self._phases[name][1]
            position += share * min(self._done[name], steps) / steps
            share, outer = share / steps, name
        return min(position, 1.0)


def make_monitor(trt: Any, report: Callable[[float], None]) -> Any:
    """A progress monitor for the library `trt`: `ask` ends the build, `report` gets the fraction that is done."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # a class of a library without types
        """Ends a build at its next step on request. Its methods must not raise: the library's C++ code calls them."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.asked = False
            self.phases = Phases()

        def ask(self) -> None:
            self.asked = True

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases.start(name, parent or "", steps)

        def phase_finish(self, name: str) -> None:
            self.phases.finish(name)

        def step_complete(self, name: str, step: int) -> bool:
            self.phases.complete(name, step)
            report(self.phases.fraction())
            return not self.asked

    return Monitor()
