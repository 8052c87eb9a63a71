"""How far a build is: TensorRT's nested phases as one fraction."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from carafe_deploy import termination

#: Called with a fraction from 0 to 1, which never falls, and the name of the running phase.
Progress = Callable[[float, str], None]


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Tracker:
    """Fraction of all work: a phase counts as one step of its parent."""

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self._highest = 0.0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins."""
        self._phases[phase] = _Phase(parent if parent in self._phases else None, max(steps, 1))

    def step(self, phase: str, number: int) -> None:
        """A step, counted from 0, is done."""
        if phase in self._phases:
            self._phases[phase].done = max(self._phases[phase].done, number + 1)

    def finish(self, phase: str) -> None:
        """A phase is over."""
        ended = self._phases.pop(phase, None)
        if ended is not None and not self._phases:
            self._highest = 1.0

    @property
    def fraction(self) -> float:
        """From 0 to 1."""
        self._highest = max(self._highest, self._inside(None))
        return self._highest

    def _inside(self, parent: str | None) -> float:
        """The largest share of a phase that is done, its own phases' included."""
        shares = (
            min((phase.done + self._inside(name)) / phase.steps, 1.0)
            for name, phase in self._phases.items()
            if phase.parent == parent
        )
        return max(shares, default=0.0)


def make_monitor(trt: Any, progress: Progress | None, is_interrupted: Callable[[], bool]) -> Any:
    """An ``IProgressMonitor`` for one of TensorRT's modules.

    TensorRT calls it from C++, possibly from several threads. An exception of ``progress`` ends the
    build and is kept as ``error`` of the monitor.
    """

    class Monitor(trt.IProgressMonitor):
        """Passes TensorRT's phases and steps on."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None
            self._lock = threading.Lock()
            self._tracker = Tracker()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._tracker.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                self._tracker.step(phase_name, step)
                self._tell(phase_name)
            return self.error is None and not is_interrupted()

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._tracker.finish(phase_name)
                self._tell(phase_name)

        def _tell(self, phase: str) -> None:
            if progress is None or self.error is not None:
                return
            try:
                progress(self._tracker.fraction, phase)
            except BaseException as error:  # raised again by whoever started the build
                self.error = error

    return Monitor()


@contextmanager
def signals_wait() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether SIGINT or SIGTERM has come.

    Python would call their handlers inside callbacks from C++, and what they raise would be lost.
    Here they are called at the end of the block. Outside the main thread, which alone handles
    signals, it stays false, as it does in a program that they end at once.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    others = (None, signal.SIG_IGN, termination.handle)
    handled = [number for number in handlers if handlers[number] not in others]
    for number in handled:
        signal.signal(number, lambda which, frame: came.append(which))
    try:
        yield lambda: bool(came)
    finally:
        for number in handled:
            signal.signal(number, handlers[number])
        for which in dict.fromkeys(came):
            signal.raise_signal(which)
